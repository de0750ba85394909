from .pairs import Pairs as Pairs
from .pairs import read_pairs as read_pairs
from .reading import read_ratings as read_ratings
from .reading_preferences import read_preferences as read_preferences
from .tables import Preference as Preference
from .tables import Preferences as Preferences
from .tables import Ratings as Ratings
