from .instances import SelectedInstances as SelectedInstances
from .instances import select_instances as select_instances
from .ohem import OHEM as OHEM
from .ohem import ohem_weights as ohem_weights
from .picker import Picked as Picked
from .picker import pick as pick
from .top_k import TopK as TopK
from .weighter import Weighter as Weighter
