from .afine import AFINELoss as AFINELoss
from .full_reference import MSSSIMLoss as MSSSIMLoss
from .full_reference import SSIMDistanceLoss as SSIMDistanceLoss
from .full_reference import SSIMLoss as SSIMLoss
from .hggt import HGGTNegativeLoss as HGGTNegativeLoss
from .loss import QALoss as QALoss
from .score_loss import ScoreLoss as ScoreLoss
