"Everything at once: `from fastmix.all import *`, after fastai's own, so that our `MixUp` and `CutMix` take the place of fastai's."
from .draw import *
from .blend import *
from .target import *
from .loss import *
from .callback import *
from .hidden import *
from .schedule import *
from .resume import *
from .recipe import *
from .plots import *
from .show import *
from .functional import *
from .distributed import *
