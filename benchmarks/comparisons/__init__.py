"""Cases to compare methods on."""

from comparisons.darcy import Darcy
from comparisons.gray_scott import GrayScott
from comparisons.heat import Heat
from comparisons.helmholtz import Helmholtz
from comparisons.imperfect import Imperfect

CASES = {"darcy": Darcy, "gray_scott": GrayScott, "heat": Heat, "helmholtz": Helmholtz, "imperfect": Imperfect}
