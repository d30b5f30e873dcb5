"What users call, at once: `from fastmix.all import *`, after fastai's own, so that our `MixUp` and `CutMix` take the place of fastai's."
from typing import TYPE_CHECKING

from .methods import CutMix, CutMixUp, FMix, MixUp, RecursiveMix, ResizeMix
from .several import RICAP, ZetaMix
from .handler import MixHandler
from .manifold import ManifoldMixUp
from .tracing import find_layers
from .schedule import MixFactors, MixSchedule, hesitation, off_after, warm_up
from .record import MixRecorder
from .ema import EMA
from .resume import FolderInUse, OtherRun, Resume, newest_checkpoint, read_checkpoint, write_checkpoint
from .recipe import LONG, run_wd
from .plots import plot_lam, plot_run, plot_schedule, planned_run
from .show import mix_label, show_mix
from . import distributed

__all__ = ['MixUp', 'CutMix', 'CutMixUp', 'ResizeMix', 'FMix', 'RecursiveMix', 'RICAP', 'ZetaMix', 'ManifoldMixUp', 'MixHandler', 'find_layers',
           'MixFactors', 'MixSchedule', 'hesitation', 'off_after', 'warm_up', 'MixRecorder', 'EMA', 'LONG', 'run_wd',
           'Resume', 'FolderInUse', 'OtherRun', 'newest_checkpoint', 'read_checkpoint', 'write_checkpoint',
           'show_mix', 'mix_label', 'plot_lam', 'plot_run', 'plot_schedule', 'planned_run']

if TYPE_CHECKING: # fastai's `Learner` as editors should know it: with `fit_long`, `show_mix` and `many_devices`
    from ._learner import Learner
    __all__ += ['Learner']
