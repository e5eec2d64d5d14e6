"""Cases to compare methods on."""

from comparisons.darcy import Darcy
from comparisons.helmholtz import Helmholtz
from comparisons.imperfect import Imperfect

CASES = {"darcy": Darcy, "helmholtz": Helmholtz, "imperfect": Imperfect}
