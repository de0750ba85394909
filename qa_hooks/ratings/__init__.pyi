from .pairs import Pairs as Pairs
from .pairs import read_pairs as read_pairs
