"""Every notebook runs, each in a process of its own, and leaves nothing behind. By default in short: experiments with one or two epochs (nbdev sets `IN_TEST`),
no picture drawn, and without the cells marked `slow`, which say what comes of the whole. `-m full` runs all of it, as Jupyter does."""
import json,re
import pytest
from house import directives, load, name, nbs, notebooks, python, root, text

run = """
import functools,signal,sys
from importlib.util import find_spec
import nbdev.test
from nbdev.config import get_config
skip = set((get_config().tst_flags or '').split())
if sys.argv[2]=='short': nbdev.test.CaptureShell = functools.partial(nbdev.test.CaptureShell, mpl_format=None)   # pictures are made, and not drawn
else:
    skip -= {'slow'}
    nbdev.test.in_notebook = lambda: True                     # else it sets IN_TEST
if all(map(find_spec, ('lightning','transformers'))): skip -= {'loops'}
if hasattr(signal, 'alarm'): signal.alarm(900)
sys.exit(0 if nbdev.test.test_nb(sys.argv[1], skip_flags=skip, cell_timeout=300)[0] else 1)
"""

@pytest.fixture(scope='module')
def runner(fork):
    "A function of a notebook's path to the exit status and what was said; half of the time of a short notebook is the import of fastai, so they are forks"
    def run_forked(nb, how='short'):
        p = fork('-c', run, nb, how, cwd=root)
        said = p.communicate(timeout=960)[0]    # the notebook ends itself before
        return p.returncode,said
    return run_forked

def files(folder): return {p for p in folder.iterdir() if p.suffix!='.ipynb' and p.name not in ('__pycache__', '.ipynb_checkpoints')}

def test_there_are_notebooks(): assert {'index', 'mix/05_draw', 'tutorials/01_from_scratch'} <= set(map(name, notebooks()))

@pytest.mark.parametrize('how', ['short', pytest.param('whole', marks=pytest.mark.full)])
@pytest.mark.parametrize('nb', notebooks(), ids=name)
def test_notebook(nb, how, runner):
    before = files(nb.parent)
    status,said = runner(nb, how)
    assert status==0, f'{nb.relative_to(root)}\n{said[-6000:]}'
    left = files(nb.parent)-before
    assert not left, f"{nb.relative_to(root)} leaves {sorted(o.name for o in left)} behind: write to a temporary folder"

@pytest.mark.parametrize('n_epoch', [2, pytest.param(80, marks=pytest.mark.full)])
def test_first_example(fork, tmp_path, n_epoch):
    "The first lines of the README run as they stand, which takes two minutes; by default for two epochs"
    imports,learn = re.findall(r'```python\n(.*?)```', (root/'README.md').read_text(encoding='utf-8'), flags=re.S)[:2]
    assert 'fit_long(80,' in learn
    p = fork('-c', imports+learn.replace('(80,', f'({n_epoch},')+'print("accuracy", learn.final_record[2])', cwd=tmp_path)
    said = p.communicate()[0]
    assert said.count('0.')>5 and p.returncode==0 and list(tmp_path.rglob('run1/*.pth')), said[-3000:]
    if n_epoch==80: assert float(said.rpartition('accuracy ')[2])>.97

def test_plain_loops_without_fastai():
    "Two pages say that there is no fastai in them"
    imports = []
    for nb in ('04_plain_pytorch','11_your_own_loop'):
        cells = [text(c['source']) for c in load(nbs/f'tutorials/{nb}.ipynb')['cells'] if c['cell_type']=='code' and not {'loops','eval'} & set(directives(c))]
        found = [l for c in cells for l in c.splitlines() if l.startswith(('import ','from '))]
        assert len(found)>5
        imports += found
    p = python('\n'.join([*imports, 'import sys', 'print("fastai" in sys.modules)']))
    assert p.stdout=='False\n', p.stderr

def test_a_notebook_that_fails_is_seen(runner, tmp_path):
    "And the next one runs as if nothing had happened"
    def nb(code): return dict(nbformat=4, nbformat_minor=5, metadata={}, cells=[dict(cell_type='code', id='c0', source=code, metadata={}, outputs=[], execution_count=None)])
    for code,want in (('1/0', 1), ('import torch; torch.manual_seed = 3', 0), ('import torch; assert callable(torch.manual_seed)', 0)):
        (tmp_path/'nb.ipynb').write_text(json.dumps(nb(code)))
        status,said = runner(tmp_path/'nb.ipynb')
        assert status==want and (want==0 or 'ZeroDivisionError' in said)
