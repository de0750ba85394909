from .registration import launch as launch
from .registration import register as register
