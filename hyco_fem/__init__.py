"""hyco_fem: finite elements and neural networks fitted together to sparse data (HYCO)."""

# MPI before PETSc before torch: each initialises what the next one finds.
import mpi4py.MPI  # noqa: F401  isort: skip
import petsc4py.PETSc  # noqa: F401  isort: skip
import torch  # noqa: F401  isort: skip

from hyco_fem._compat import MeshAndTags, show_warnings
from hyco_fem.accuracy.adaptive import AdaptiveLevel, adapt, dorfler, refine_marked
from hyco_fem.accuracy.bound import ExplicitBound, bound_table, explicit_bound
from hyco_fem.accuracy.certificate import Certificate, Certifier, certificate
from hyco_fem.accuracy.convergence import ConvergenceTable, ReferenceSolution, reference_solution, refined
from hyco_fem.accuracy.errors import ErrorNorms, error_norms, mesh_size, relative_l2
from hyco_fem.accuracy.sharpness import Sharpness, TrueErrors, sharpness
from hyco_fem.bridge.boundary_ghosts import BoundaryGhosts, GhostUnion
from hyco_fem.bridge.dofs import as_function, dof_coordinates
from hyco_fem.bridge.ghosts import DofGhosts, QuadratureGhosts, RandomGhosts, quadrature_points
from hyco_fem.bridge.integration import BoundaryQuadrature, CellQuadrature
from hyco_fem.bridge.jacobian import Jacobian
from hyco_fem.bridge.points import OutsideError, Points
from hyco_fem.bridge.spacetime import SpaceTime, SpaceTimePoints
from hyco_fem.files import output_folder
from hyco_fem.game.answers import LBFGS, AdamStep, Answers, TorchStep
from hyco_fem.game.baselines import NetworkOnly, PhysicsOnly
from hyco_fem.game.curvature import MisfitHessian
from hyco_fem.game.data import Data, Sensing
from hyco_fem.game.field import FieldResult, FieldStep, bayesian_weight, fit_field
from hyco_fem.game.gauss_newton import GaussNewton
from hyco_fem.game.history import Record, Result
from hyco_fem.game.hyco import Hyco
from hyco_fem.game.identify import Identifiability
from hyco_fem.game.least_squares import LeastSquaresResult, least_squares
from hyco_fem.game.loop import Stopping
from hyco_fem.game.losses import Weights, scenario_misfit
from hyco_fem.game.multistart import MultiStart
from hyco_fem.game.pinn import PINN, PINNWeights
from hyco_fem.game.pinn_transient import TransientInformedRecord, TransientPINN
from hyco_fem.game.prior import Prior
from hyco_fem.game.progress import BarProgress, TextProgress, progress
from hyco_fem.game.rules import Choice, CrossValidation, Discrepancy, GradientBalance, ModelDiscrepancy, choose_decay
from hyco_fem.game.split import Split
from hyco_fem.game.split_game import SplitHyco, SplitResult
from hyco_fem.game.trust import TrustReport, trust_report
from hyco_fem.game.vpinn import VariationalPINN, VariationalWeights
from hyco_fem.game.weight import WeightChoice, choose_weight
from hyco_fem.io.animation import animate_images, save_animation
from hyco_fem.io.checkpoint import Checkpoints, Restart
from hyco_fem.io.fields import FieldSeries, write_fields
from hyco_fem.io.history import HistoryFile, read_history
from hyco_fem.io.meshes import read_mesh, write_mesh
from hyco_fem.io.pictures import picture
from hyco_fem.io.plots import Raster, save_figure, show
from hyco_fem.io.screen import off_screen
from hyco_fem.io.sensors import Sensors, read_sensors, write_sensors
from hyco_fem.models.coefficients import GaussianBumps, NeuralField, NodalField, Scalar, SineSeries, Sum
from hyco_fem.models.device import OnDevice
from hyco_fem.models.distance import mesh_distance
from hyco_fem.models.experiments import Scenario
from hyco_fem.models.neural_ode import NeuralODE
from hyco_fem.models.pde_model import CoefficientError, PerInterval
from hyco_fem.models.physical import PhysicalModel
from hyco_fem.models.strong import StrongForm, strong_residual
from hyco_fem.models.strong_transient import InTime, TransientStrongForm, transient_residual
from hyco_fem.models.synthetic import (
    MLP,
    FourierFeatures,
    HardBoundary,
    InputScaling,
    ResNet,
    ShallowNet,
    bounding_box,
    box_distance,
)
from hyco_fem.models.transforms import Bounded, Identity, Positive, Square, Transform
from hyco_fem.models.transient import TransientModel
from hyco_fem.parallel import limit_threads
from hyco_fem.pde import catalogue
from hyco_fem.pde.checkpoints import InMemory, MemoryBudget, OnDisk, Revolve
from hyco_fem.pde.evolution import TransientProblem
from hyco_fem.pde.inner import RieszMap
from hyco_fem.pde.linear import SolveError
from hyco_fem.pde.march import BlowUp
from hyco_fem.pde.problem import Dirichlet, Flux, Problem, Robin
from hyco_fem.pde.regularisers import BiLaplacian, H1Tikhonov, L2Tikhonov, Regulariser, TotalVariation
from hyco_fem.pde.scheme import BDF, BDF2, BDF3, BackwardEuler, CrankNicolson, ThetaScheme
from hyco_fem.pde.steady import SteadySolver
from hyco_fem.pde.timegrid import TimeGrid
from hyco_fem.ritz.coercivity import CoercivityRun, DistanceTikhonov, GaussianSlope, WeightTikhonov, minimise_pair
from hyco_fem.ritz.deep_ritz import DeepRitz, RitzRecord
from hyco_fem.ritz.energy import RitzEnergy
from hyco_fem.ritz.mean_field import MeanFieldFit, mean_field
from hyco_fem.ritz.shallow import ShallowFits, fit_shallow
from hyco_fem.script import run_script
from hyco_fem.verify import (
    InvarianceResult,
    TaylorResult,
    dot_product_test,
    rank_invariance,
    taylor_test,
)

show_warnings()

__version__ = "0.1.0"

__all__ = [
    "BDF",
    "BDF2",
    "BDF3",
    "LBFGS",
    "MLP",
    "PINN",
    "AdamStep",
    "AdaptiveLevel",
    "Answers",
    "BackwardEuler",
    "BarProgress",
    "BiLaplacian",
    "BlowUp",
    "BoundaryGhosts",
    "BoundaryQuadrature",
    "Bounded",
    "CellQuadrature",
    "Certificate",
    "Certifier",
    "Checkpoints",
    "Choice",
    "CoefficientError",
    "CoercivityRun",
    "ConvergenceTable",
    "CrankNicolson",
    "CrossValidation",
    "Data",
    "DeepRitz",
    "Dirichlet",
    "Discrepancy",
    "DistanceTikhonov",
    "DofGhosts",
    "ErrorNorms",
    "ExplicitBound",
    "FieldResult",
    "FieldSeries",
    "FieldStep",
    "Flux",
    "FourierFeatures",
    "GaussNewton",
    "GaussianBumps",
    "GaussianSlope",
    "GhostUnion",
    "GradientBalance",
    "H1Tikhonov",
    "HardBoundary",
    "HistoryFile",
    "Hyco",
    "Identifiability",
    "Identity",
    "InMemory",
    "InTime",
    "InputScaling",
    "InvarianceResult",
    "Jacobian",
    "L2Tikhonov",
    "LeastSquaresResult",
    "MeanFieldFit",
    "MemoryBudget",
    "MeshAndTags",
    "MisfitHessian",
    "ModelDiscrepancy",
    "MultiStart",
    "NetworkOnly",
    "NeuralField",
    "NeuralODE",
    "NodalField",
    "OnDevice",
    "OnDisk",
    "OutsideError",
    "PINNWeights",
    "PerInterval",
    "PhysicalModel",
    "PhysicsOnly",
    "Points",
    "Positive",
    "Prior",
    "Problem",
    "QuadratureGhosts",
    "RandomGhosts",
    "Raster",
    "Record",
    "ReferenceSolution",
    "Regulariser",
    "ResNet",
    "Restart",
    "Result",
    "Revolve",
    "RieszMap",
    "RitzEnergy",
    "RitzRecord",
    "Robin",
    "Scalar",
    "Scenario",
    "Sensing",
    "Sensors",
    "ShallowFits",
    "ShallowNet",
    "Sharpness",
    "SineSeries",
    "SolveError",
    "SpaceTime",
    "SpaceTimePoints",
    "Split",
    "SplitHyco",
    "SplitResult",
    "Square",
    "SteadySolver",
    "Stopping",
    "StrongForm",
    "Sum",
    "TaylorResult",
    "TextProgress",
    "ThetaScheme",
    "TimeGrid",
    "TorchStep",
    "TotalVariation",
    "Transform",
    "TransientInformedRecord",
    "TransientModel",
    "TransientPINN",
    "TransientProblem",
    "TransientStrongForm",
    "TrueErrors",
    "TrustReport",
    "VariationalPINN",
    "VariationalWeights",
    "WeightChoice",
    "WeightTikhonov",
    "Weights",
    "adapt",
    "animate_images",
    "as_function",
    "bayesian_weight",
    "bound_table",
    "bounding_box",
    "box_distance",
    "catalogue",
    "certificate",
    "choose_decay",
    "choose_weight",
    "dof_coordinates",
    "dorfler",
    "dot_product_test",
    "error_norms",
    "explicit_bound",
    "fit_field",
    "fit_shallow",
    "least_squares",
    "limit_threads",
    "mean_field",
    "mesh_distance",
    "mesh_size",
    "minimise_pair",
    "off_screen",
    "output_folder",
    "picture",
    "progress",
    "quadrature_points",
    "rank_invariance",
    "read_history",
    "read_mesh",
    "read_sensors",
    "reference_solution",
    "refine_marked",
    "refined",
    "relative_l2",
    "run_script",
    "save_animation",
    "save_figure",
    "scenario_misfit",
    "sharpness",
    "show",
    "strong_residual",
    "taylor_test",
    "transient_residual",
    "trust_report",
    "write_fields",
    "write_mesh",
    "write_sensors",
]
