"One thread, no windows, and the same random numbers for every test."
import os
os.environ['MPLBACKEND'] = 'Agg'
for _k in ('OMP_NUM_THREADS', 'MKL_NUM_THREADS', 'OPENBLAS_NUM_THREADS'): os.environ.setdefault(_k, '1')

import random
import pytest

@pytest.fixture(autouse=True)
def seeds():
    "Python's, numpy's and torch's global generators start each test alike; torch keeps to one thread"
    import numpy as np, torch
    torch.set_num_threads(1)
    random.seed(42); np.random.seed(42); torch.manual_seed(42)

try: from hypothesis import HealthCheck, settings
except ImportError: pass   # the tests of properties need it, no others
else:
    quiet = dict(deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.function_scoped_fixture])
    settings.register_profile('same', max_examples=50, derandomize=True, **quiet)   # the same cases in every run
    settings.register_profile('search', max_examples=2000, **quiet)
    settings.load_profile('same')
