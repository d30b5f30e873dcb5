"Everything at once: `from fastmix.all import *`, after fastai's own, so that our `MixUp` and `CutMix` take the place of fastai's."
from .draw import *
from .blend import *
from .target import *
from .loss import *
from .schedule import *
from .handler import *
from .methods import *
from .tracing import *
from .manifold import *
from .record import *
from .ema import *
from .resume import *
from .ema import *
from .recipe import *
from .show import *
from .functional import *
from .distributed import *
