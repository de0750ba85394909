from .alarm_rule import AlarmRule as AlarmRule
from .check import check_reward as check_reward
from .doctor import Diagnosis as Diagnosis
from .doctor import diagnose as diagnose
from .reward_fn import as_reward_fn as as_reward_fn
