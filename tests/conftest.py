"One thread, no windows, and the same random numbers for every test."
import os
os.environ['MPLBACKEND'] = 'Agg'
for _k in ('OMP_NUM_THREADS', 'MKL_NUM_THREADS', 'OPENBLAS_NUM_THREADS'): os.environ.setdefault(_k, '1')

import random,time
from collections import Counter
import pytest

@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    "Of the cases of a test with the mark `every(k)` each k-th runs by default, the others with `-m full`; a k without a common factor with the numbers of values tries each value"
    seen = Counter()
    for o in items:
        if (mark := o.get_closest_marker('every')):
            if seen[o.function]%mark.args[0]: o.add_marker('full')
            seen[o.function] += 1

@pytest.fixture(autouse=True)
def seeds():
    "Python's, numpy's and torch's global generators start each test alike; torch keeps to one thread"
    import numpy as np, torch
    torch.set_num_threads(1)
    random.seed(42); np.random.seed(42); torch.manual_seed(42)

@pytest.fixture(scope='session')
def fork(tmp_path_factory):
    "`fork(program, …)` starts it in a fork of a process that has imported fastai and nbdev, and nothing of ours"
    from programs import forking
    with forking(tmp_path_factory.mktemp('logs'), *(f'fastai.{o}.all' for o in ('vision','text','tabular')), 'matplotlib.pyplot', 'sklearn.datasets', 'nbdev.test') as f: yield f

@pytest.fixture(scope='session')
def made_once(tmp_path_factory):
    "`made_once(name, make)`: a folder that `make(folder)` fills, once for all the workers of a run"
    base = tmp_path_factory.getbasetemp()
    if 'PYTEST_XDIST_WORKER' in os.environ: base = base.parent   # shared by the workers
    def made(name, make):
        folder,done = base/name,base/f'{name}.done'
        try: folder.mkdir()
        except FileExistsError:
            while not done.exists(): time.sleep(.1)
            assert not done.read_text(), done.read_text()
            return folder
        error = 'not made'
        try:
            make(folder)
            error = ''
        except BaseException as e:
            error = f'{name} could not be made: {e}'
            raise
        finally: done.write_text(error)
        return folder
    return made

try: from hypothesis import HealthCheck, settings
except ImportError: pass   # the tests of properties need it, no others
else:
    quiet = dict(deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.function_scoped_fixture])
    settings.register_profile('same', max_examples=50, derandomize=True, **quiet)   # the same cases in every run
    settings.register_profile('search', max_examples=2000, **quiet)
    settings.load_profile('same')
