"Two processes on the CPU, with `many_devices`, on fastai's distributed training and accelerate"
import json,random,shutil,signal,subprocess
from pathlib import Path
import pytest
from programs import forking, rank_variables
pytest.importorskip('accelerate', reason='an extra: pip install fastmix[distributed]')

@pytest.fixture(scope='module')
def launch(tmp_path_factory):
    "Run `ranks.py` in `n` processes, as `accelerate launch` would but forked, for `kill_after` seconds at most; their exit codes"
    with forking(tmp_path_factory.mktemp('logs'), 'accelerate', 'fastmix.all', 'fastai.callback.all', 'fastai.distributed', 'sklearn.datasets') as start:
        def f(n, folder, *scenes, kill_after=None):
            ps = [start(Path(__file__).parent/'ranks.py', folder, *scenes, env=o) for o in rank_variables(n)]
            try: return [p.wait(kill_after or 300) for p in ps]
            except subprocess.TimeoutExpired:
                if kill_after is None: raise
            finally:
                for p in ps: p.kill()
                for r,p in enumerate(ps): (folder/f'log_{scenes[-1]}_{r}.txt').write_text(p.communicate()[0])
        yield f

@pytest.fixture(scope='module')
def folder(tmp_path_factory, launch):
    folder = tmp_path_factory.mktemp('ranks')
    def log(): return '\n'.join(f.read_text()[-2000:] for f in sorted(folder.glob('log*')))
    assert launch(2, folder, 'undisturbed', 'no_folder', 'paused', 'signalled', 'killed')==[-signal.SIGKILL]*2, log()
    assert [f.name for f in sorted((folder/'killed/models/run').glob('*.pth'))]==['epoch_0002.pth','epoch_0002_batch_000001.pth']
    shutil.copytree(folder/'killed', folder/'of_two')
    assert launch(2, folder, 'continued')==[0,0], log()
    assert launch(1, folder, 'of_two')==[0], log()
    return folder

def load(folder, scene, n=2): return [json.loads((folder/f'{scene}_{r}.json').read_text()) for r in range(n)]

def test_ranks_differ(folder):
    "The same weights, other batches and other random numbers"
    a,b = load(folder, 'undisturbed')
    assert a['weights']==b['weights'] and a['opt']==b['opt'] and a['values']==b['values']
    assert a['draws']!=b['draws'] and len(a['seen'])==len(b['seen'])==3 and not set(a['seen'])&set(b['seen'])

@pytest.mark.parametrize('scene', ['paused','continued'])
def test_resumed(folder, scene):
    "At the end of an epoch and in the middle of one: every rank ends as if it had never stopped"
    assert load(folder, scene)==load(folder, 'undisturbed')

def test_one_writes(folder):
    "One set of files, written by the first rank, with every rank's own state"
    from fastmix.checkpoint.files import read_checkpoint
    state = read_checkpoint(folder/'killed/models/run/epoch_0004.pth')
    assert len(state['own'])==2 and state['run']['processes']==2
    a,b = (o['random']['torch'] for o in state['own'])
    assert not a.equal(b)

def test_error_for_all(folder):
    for s in load(folder, 'no_folder'): assert "Resume('run') cannot write" in s

def test_a_signal_to_one(folder):
    "Saved and ended by all, after the same batch; in validation with what was before it"
    codes = [[128+signal.SIGTERM,f'epoch_0001_batch_00000{i}.pth'] for i in (2,3)]
    assert load(folder, 'signalled')==[dict(codes=codes, **o) for o in load(folder, 'undisturbed')]

def test_other_number(folder):
    "What two have saved is refused to one, with a remedy, which works"
    refused = load(folder, 'of_two', 1)[0]
    assert 'processes: 1 here, 2 in the checkpoint' in refused and "resume='weights'" in refused
    assert 'starts a new cycle of 4 epochs from the weights in epoch_0002_batch_000001.pth (after 2 epochs and 1 batches)' in (folder/'log_of_two_0.txt').read_text()

@pytest.mark.full
def test_three(tmp_path, launch):
    "The sums of three numbers have an order, which is the same in the first step of a continued run and in the later ones"
    assert launch(3, tmp_path, 'undisturbed')==[0]*3 and launch(3, tmp_path, 'killed')==[-signal.SIGKILL]*3 and launch(3, tmp_path, 'continued')==[0]*3
    assert load(tmp_path, 'continued', 3)==load(tmp_path, 'undisturbed', 3)

@pytest.mark.full
def test_three_killed_at_random(tmp_path, launch):
    "Three processes, killed with SIGKILL at random moments, and continued"
    assert launch(3, tmp_path, 'undisturbed')==[0]*3
    for i in range(4): launch(3, tmp_path, 'killed' if not i else 'continued', kill_after=random.uniform(.3, 2) if i else None)
    assert launch(3, tmp_path, 'continued')==[0]*3
    assert load(tmp_path, 'continued', 3)==load(tmp_path, 'undisturbed', 3)
