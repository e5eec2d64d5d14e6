"""Cases to compare methods on."""

from cases.darcy import Darcy
from cases.helmholtz import Helmholtz
from cases.imperfect import Imperfect

CASES = {"darcy": Darcy, "helmholtz": Helmholtz, "imperfect": Imperfect}
