"Everything at once: `from fastmix.all import *`, after fastai's own, so that our `MixUp` and `CutMix` shadow fastai's."
from importlib.util import find_spec

for _name in 'draw blend target loss callback hidden schedule resume recipe show functional'.split():
    if find_spec(f'fastmix.{_name}'): exec(f'from fastmix.{_name} import *')
