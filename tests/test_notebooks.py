"Every notebook runs, each in an interpreter of its own, and leaves nothing behind."
import pytest
from house import name, nbs, notebooks, python, root

run = """
import sys
from nbdev.config import get_config
from nbdev.test import test_nb
flags = (get_config().tst_flags or '').split()
ok,_ = test_nb(sys.argv[1], skip_flags=flags, cell_timeout=300)
sys.exit(0 if ok else 1)
"""

def files(folder): return {p for p in folder.iterdir() if p.suffix!='.ipynb' and p.name not in ('__pycache__', '.ipynb_checkpoints')}

def test_there_are_notebooks(): assert {'index', 'mix/05_draw', 'tutorials/01_from_scratch'} <= set(map(name, notebooks()))

@pytest.mark.parametrize('nb', notebooks(), ids=name)
def test_notebook(nb):
    before = files(nb.parent)
    p = python(run, nb, cwd=root, timeout=900)
    assert p.returncode==0, f'{nb.relative_to(root)}\n{p.stderr[-6000:]}'
    left = files(nb.parent)-before
    assert not left, f"{nb.relative_to(root)} leaves {sorted(o.name for o in left)} behind: write to a temporary folder"
