"Two processes on the CPU, with `many_devices`, on fastai's distributed training and accelerate"
import json,os,signal,socket,subprocess,sys
from pathlib import Path
import pytest
pytest.importorskip('accelerate', reason='an extra: pip install fastmix[distributed]')

def launch(n, folder, *scenes):
    "Run `ranks.py` in `n` processes, as `accelerate launch` would; their exit codes"
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    def start(r):
        env = {**os.environ, 'RANK':str(r), 'LOCAL_RANK':str(r), 'WORLD_SIZE':str(n), 'MASTER_ADDR':'127.0.0.1', 'MASTER_PORT':str(port), 'OMP_NUM_THREADS':'1'}
        log = (folder/f'log_{scenes[-1]}_{r}.txt').open('w')
        return subprocess.Popen([sys.executable, str(Path(__file__).parent/'ranks.py'), str(folder), *scenes], env=env, stdout=log, stderr=log)
    ps = [start(r) for r in range(n)]
    try: return [p.wait(300) for p in ps]
    finally:
        for p in ps: p.kill()

@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp('ranks')
    def log(): return '\n'.join(f.read_text()[-2000:] for f in sorted(folder.glob('log*')))
    assert launch(2, folder, 'undisturbed', 'no_folder', 'paused', 'killed')==[-signal.SIGKILL]*2, log()
    assert [f.name for f in sorted((folder/'killed/models/run').glob('*.pth'))]==['epoch_0001.pth','epoch_0002.pth']
    assert launch(1, folder, 'other_number')==[0], log()
    assert launch(2, folder, 'continued')==[0,0], log()
    return folder

def load(folder, scene, n=2): return [json.loads((folder/f'{scene}_{r}.json').read_text()) for r in range(n)]

def test_ranks_differ(folder):
    "The same weights, other batches and other random numbers"
    a,b = load(folder, 'undisturbed')
    assert a['weights']==b['weights'] and a['opt']==b['opt'] and a['values']==b['values']
    assert a['draws']!=b['draws'] and len(a['seen'])==len(b['seen'])==3 and not set(a['seen'])&set(b['seen'])

@pytest.mark.parametrize('scene', ['paused','continued'])
def test_resumed(folder, scene):
    "Every rank ends as if it had never stopped"
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

def test_other_number(folder):
    assert 'processes: 1 here, 2 in the checkpoint' in load(folder, 'other_number', 1)[0]
