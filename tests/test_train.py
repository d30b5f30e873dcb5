"`fastmix-train` as people use it: real folders, real processes, real signals."
import json, os, pickle, shutil, signal, subprocess, sys, time
from importlib.util import find_spec
from pathlib import Path
import numpy as np, pandas as pd, pytest
from matplotlib.figure import Figure
from PIL import Image
from safetensors import safe_open
from sklearn.datasets import load_digits
from fastmix.checkpoint.files import lock_folder, unlock_folder
from fastmix.data import BadArgument, digit_dls, list_folder
from fastmix.models import make_model
from fastmix.runs import read_args, run_folder
from fastmix.train import train_cli
from programs import forking, rank_variables, started

NAMES = list(digit_dls().vocab)

FILES = ['args.json','curves.png','history.csv','mixed.png','model.pkl','model.safetensors']

@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path

@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    "Real digits as PNG files in Imagenette's layout"
    root = tmp_path_factory.mktemp('data')/'digits-as-files'
    x,y = load_digits(return_X_y=True)
    for c in (0,3,8):
        for k,i in enumerate(np.where(y==c)[0][:24]):
            f = root/('train' if k<16 else 'val')/NAMES[c]/f'{i}.png'
            f.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray((x[i].reshape(8,8)*15).astype(np.uint8)).resize((40,40)).save(f)
    return root

def files(d): return sorted(o.name for o in Path(d).iterdir() if o.is_file())
def everything(d): return sorted(str(o.relative_to(d)) for o in Path(d).rglob('*'))
def cli(*args): return [sys.executable, '-m', 'fastmix.train', *map(str, args)]

small = dict(size=16, bs=16, workers=0)                                # with `folder`: three batches an epoch
small_args = ['--size', 16, '--bs', 16, '--workers', 0]

@pytest.fixture(scope='module')
def start_any(tmp_path_factory):
    "A program, started in a fork of a process that has imported what the command imports, but not the command"
    timm = ['timm'] if find_spec('timm') else []
    with forking(tmp_path_factory.mktemp('logs'), 'fastmix.all', 'fastmix.runs', 'fastmix.models', 'safetensors.torch', *timm) as f: yield f

@pytest.fixture
def start(start_any): return lambda *args, **kw: start_any('-m', 'fastmix.train', *args, **kw)

@pytest.fixture
def run(start):
    "A command that is waited for"
    def f(*args, cwd):
        p = start(*args, cwd=cwd, both=False)
        p.stdout,p.stderr = p.communicate()
        return p
    return f

@pytest.fixture
def unpainted(monkeypatch):
    "Figures are made but not painted, which takes longer than to train; other tests have them painted"
    monkeypatch.setattr(Figure, 'savefig', lambda self, to, **kw: Path(to).write_bytes(b'a picture'))

def history(d): return pd.read_csv(Path(d)/'history.csv').drop(columns='time')
def same_run(a, b):
    "Weights byte by byte, history but for times"
    assert (Path(a)/'model.safetensors').read_bytes()==(Path(b)/'model.safetensors').read_bytes()
    pd.testing.assert_frame_equal(history(a), history(b), check_exact=True)

@pytest.mark.filterwarnings('ignore')
def test_folder(folder, here):
    "A folder of pictures: all files are written, and each can be used by those who load it"
    from fastai.learner import load_learner
    acc = train_cli(folder, epochs=2, size=32, bs=8, lr=1e-2, workers=0, cutmix=.4, mixup=.5, mixup_switch_prob=.4, out='out')
    assert files('out')==FILES and 0<=acc<=1
    assert list(history('out').epoch)==[0,1]
    learn = load_learner('out/model.pkl')
    cls,_,probs = learn.predict(next((folder/'val'/'three').iterdir()))
    assert cls in ('eight','three','zero') and abs(probs.sum().item()-1)<1e-5
    learn.model.eval()
    with safe_open('out/model.safetensors', 'pt') as f:
        assert json.loads(f.metadata()['classes'])==['eight','three','zero']
        state = {k:f.get_tensor(k) for k in f.keys()}
    model = make_model('small', 3, 32); model.load_state_dict(state)
    for k,v in learn.model.state_dict().items(): assert (v==state[k]).all(), k
    args = json.loads(Path('out/args.json').read_text())
    assert (args['epochs'],args['cutmix'],args['mixup_switch_prob'])==(2,.4,.4)
    for o in ('mixed.png','curves.png'): assert min(Image.open(f'out/{o}').size)>100
    assert not [o for o in everything('out') if o.endswith('.tmp')]

@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('kw', [dict(arch='resnet18'), dict(arch='xresnet18'), dict(arch='resnet10t'), dict(mixup=0., cutmix=0.), dict(mixup_mode='elem'), dict(cutmix_minmax=(.2,.6)),
    dict(mixup_off_epoch=1), dict(schedule='hesitation'), dict(schedule='constant', smoothing=.1), dict(ema=.9, clip=1.), dict(opt='lamb', wd=.02), dict(amp='bf16', channels_last=True)], ids=str)
def test_options(folder, here, unpainted, kw):
    acc = train_cli(folder, epochs=1, **small, out='out', **kw)
    assert files('out')==[f for f in FILES if f!='mixed.png' or kw.get('mixup')!=0.] and 0<=acc<=1
    if kw.get('mixup')==0.: assert 'mix_prob' not in history('out') or (history('out').mix_prob.fillna(0)==0).all()

@pytest.mark.filterwarnings('ignore')
def test_compare_and_default_folders(here, capsys):
    train_cli(epochs=1, bs=256, compare=True, lr=1e-2)
    out = capsys.readouterr().out
    assert 'with mixing, ' in out and 'without' in out
    assert files('runs/digits')==FILES and 'history.csv' in files('runs/digits/plain')
    train_cli(epochs=1, bs=256, lr=1e-2)
    assert sorted(os.listdir('runs'))==['digits','digits-2']
    same_run('runs/digits', 'runs/digits-2')                           # the same seed, the same run

bad = [(dict(mixup=-1.), '--mixup -1.0'), (dict(cutmix=float('nan')), '--cutmix nan'), (dict(mixup_prob=1.5), '--mixup-prob 1.5'), (dict(mixup_switch_prob=-.1), '--mixup-switch-prob -0.1'),
    (dict(cutmix_minmax=[.8,.2]), '--cutmix-minmax'), (dict(mixup_mode='all'), "--mixup-mode 'all'"), (dict(mixup_off_epoch=-1), '--mixup-off-epoch -1'), (dict(smoothing=1.), '--smoothing 1.0'),
    (dict(epochs=0), '--epochs 0'), (dict(lr=0.), '--lr 0'), (dict(lr=-1.), '--lr -1'), (dict(bs=0), '--bs 0'), (dict(size=0), '--size 0'),
    (dict(bs=100_000), '--bs 100000: more than the 1437'), (dict(size=100_000), '--size 100000: must be'), (dict(size=3000), '--size 3000: the digits are'), (dict(seed=2**64), '--seed 18446744073709551616: must be'),
    (dict(lr=5e-324), '--lr 5e-324: must be'), (dict(lr=1e308), r'--lr 1e\+308: must be'), (dict(epochs=10**9), '--epochs 1000000000: must be'), (dict(workers=10**6), '--workers 1000000: must be'),
    (dict(mixup=1e308), r'--mixup 1e\+308: must be'), (dict(wd=1e308), r'--wd 1e\+308: must be'), (dict(clip=5e-324), '--clip 5e-324: must be'), (dict(arch='resnet19'), '--arch resnet19.*resnet18'),
    (dict(seed=-1), '--seed -1'), (dict(opt='adagrad'), "--opt 'adagrad'"), (dict(wd=-.1), '--wd -0.1'), (dict(ema=1.), '--ema 1.0'), (dict(clip=0.), '--clip 0'), (dict(amp='fp8'), "--amp 'fp8'"),
    (dict(schedule='late'), "--schedule 'late'"), (dict(workers=-1), '--workers -1'), (dict(arch='resnet19'), r'did you mean (?!.*(\b\w+\b) or \1\b)'), (dict(compare=True, mixup=0.), '--compare: nothing is mixed'),
    (dict(arch='googlenet', size=64), '--arch googlenet: its output is no tensor'), (dict(arch='resnet18', bs=1), '--arch resnet18: cannot take .* in batches of 1 '),
    (dict(path='nowhere'), 'nowhere: no such folder'), (dict(arch='inception_v3'), '--arch inception_v3: cannot take pictures of 8 pixels'),
    (dict(out='/dev/null'), '--out /dev/null: /dev/null is a file'), (dict(out='/dev/null/a/b'), '/dev/null is a file'), (dict(out='n'*300), 'cannot be made'),
    (dict(out='a\nb'), 'control characters'), (dict(out='a\0b'), 'control characters'), (dict(path='a\0b'), 'no such folder')]
@pytest.mark.parametrize('kw,says', bad, ids=[s for _,s in bad])
def test_bad_arguments(here, kw, says):
    with pytest.raises(BadArgument, match=says): train_cli(**kw)
    assert everything(here)==[]                                        # nothing is left behind

def damaged(folder, to, how):
    shutil.copytree(folder, to)
    if how=='empty class': (to/'train'/'nine').mkdir()
    elif how=='one side only': (to/'val'/'nine').mkdir(); shutil.copy(next((to/'val'/'three').iterdir()), to/'val'/'nine')
    elif how=='unreadable': (to/'val'/'three'/'bad.png').write_bytes(b'no picture')
    elif how=='truncated': f = next((to/'train'/'zero').iterdir()); f.write_bytes(f.read_bytes()[:60])
    elif how=='no val': shutil.rmtree(to/'val')
    elif how=='one class':
        for o in to.glob('*/*'): o.name=='three' or shutil.rmtree(o)
    elif how=='sub-folder': (to/'train'/'three'/'more').mkdir(); f = next((to/'train'/'three').glob('*.png')); f.rename(f.parent/'more'/f.name)
    elif how=='pipe': os.mkfifo(to/'val'/'three'/'pipe.png')
    elif how=='device': (to/'val'/'three'/'device.png').symlink_to('/dev/zero')
    elif how=='16 bits': Image.fromarray(np.full((8,8), 300, dtype=np.uint16)).save(to/'val'/'three'/'deep.png')
    return to

@pytest.mark.parametrize('how,says', [('empty class','nine has no pictures'), ('one side only','class nine is in .*val only'), ('unreadable','bad.png cannot be read'),
                                      ('truncated','png cannot be read'), ('no val','has no folder val/'), ('one class','one class folder only, three'), ('sub-folder','more/.*png is in a folder inside .*three'), ('16 bits','deep.png has more than 8 bits'),
                                      ('pipe','pipe.png is no file'), ('device','device.png is no file')])
def test_bad_folders(folder, here, how, says):
    if how in ('pipe','device') and not hasattr(os, 'mkfifo'): pytest.skip('pipes and devices as Unix has them')
    d = damaged(folder, here/'d', how); before = everything(here)
    with pytest.raises(BadArgument, match=says): train_cli(d, epochs=1)
    assert everything(here)==before

@pytest.mark.filterwarnings('ignore')
def test_other_pictures(folder, here, unpainted):
    "A run goes on with its own pictures only, wherever they are now; a finished one is not reported for others"
    kw = dict(epochs=1, **small)
    shutil.copytree(folder, here/'d'); acc = train_cli(here/'d', out='out', **kw)
    (here/'d').rename(here/'moved')
    assert train_cli(here/'moved', out='out', resume=True, **kw)==acc
    f = next((here/'moved'/'val'/'three').iterdir()); f.rename(here/'moved'/'val'/'zero'/f.name)
    with pytest.raises(BadArgument, match='--out out: holds a run on other pictures'): train_cli(here/'moved', out='out', resume=True, **kw)
    shutil.copytree(folder, here/'e'/'moved'); train_cli(here/'moved', **kw); train_cli(here/'e'/'moved', **kw)
    assert sorted(os.listdir('runs'))==['moved','moved-2']

@pytest.mark.filterwarnings('ignore')
def test_compare_that_was_stopped(folder, here, unpainted):
    "The half without mixing is missing: the same call goes on with it, and so does --compare on a run without"
    kw = dict(epochs=1, out='out', **small)
    train_cli(folder, **kw)
    files_then = {o:(here/'out'/o).read_bytes() for o in ('model.pkl','history.csv')}
    train_cli(folder, compare=True, **kw)
    assert (here/'out'/'plain'/'model.pkl').exists() and {o:(here/'out'/o).read_bytes() for o in files_then}==files_then
    with pytest.raises(BadArgument, match='holds a finished run.*--resume'): train_cli(folder, compare=True, **kw)

@pytest.mark.filterwarnings('ignore')
def test_an_error_in_the_first_epoch(folder, here, monkeypatch):
    "Nothing is left of a run without one epoch"
    from fastai.learner import Recorder
    monkeypatch.setattr(Recorder, 'before_validate', lambda self: 1/0)
    with pytest.raises(ZeroDivisionError): train_cli(folder, epochs=1, out='out', **small)
    assert everything(here)==[]

@pytest.mark.filterwarnings('ignore')
def test_a_folder_in_use(folder, here, unpainted):
    "By another run of the command, or by whoever trains into its checkpoints"
    train_cli(folder, epochs=1, out='out', **small); (here/'out'/'model.pkl').unlink()
    for held in ('checkpoints', 'checkpoints/run'):
        lock_folder(here/'out'/held)
        try:
            with pytest.raises(BadArgument, match='--out out: another process trains into it'): train_cli(folder, epochs=1, out='out', **small)
        finally: unlock_folder(here/'out'/held)
    train_cli(folder, epochs=1, out='out', **small)

# --- whose folder it is

args = dict(out=None, resume=False, compare=False, epochs=80, seed=1, path=None)

def test_who_comes_second_takes_the_next_folder(here):
    "Also with the same arguments; a folder that nobody holds and that holds this run is taken again"
    with run_folder(args, 'x') as (a,_), run_folder({**args, 'seed':2}, 'x') as (b,_), run_folder(args, 'x') as (c,_):
        assert [o.as_posix() for o in (a,b,c)]==['runs/x','runs/x-2','runs/x-3'] and [read_args(o)['seed'] for o in (a,b,c)]==[1,2,1]
        with pytest.raises(BadArgument, match='another process trains into it'): run_folder({**args, 'out':a}, 'x').__enter__()
    with run_folder({**args, 'seed':2}, 'x') as (b,_): assert b.as_posix()=='runs/x-2'

def test_started_together(folder, here, start):
    "Two seeds and one of them twice: each has a folder of its own with its own arguments, and its own weights"
    ps = [start(folder, '--seed', s, '--epochs', 2, *small_args, cwd=here) for s in (1,2,2)]
    said = [p.communicate()[0] for p in ps]
    assert not any(p.returncode for p in ps), said
    outs = [o.rsplit('written to ', 1)[1].partition(':')[0] for o in said]
    assert sorted(outs)==[f'runs/{folder.name}{o}' for o in ('','-2','-3')] and [read_args(here/o)['seed'] for o in outs]==[1,2,2]
    same_run(here/outs[1], here/outs[2])
    assert (here/outs[0]/'model.safetensors').read_bytes()!=(here/outs[1]/'model.safetensors').read_bytes()

@pytest.mark.parametrize('error', [ZeroDivisionError, KeyboardInterrupt, MemoryError])
@pytest.mark.parametrize('out', [None, 'a/b/c', 'there', '../up'])
def test_nothing_is_left(here, error, out, monkeypatch):
    "Whatever ends a run before its first epoch, the folders that were made for it go again, and no others"
    work = here/'work'; (work/'there').mkdir(parents=True); monkeypatch.chdir(work)
    before = everything(here)
    with pytest.raises(error):
        with run_folder({**args, 'out':out}, 'x') as (o,_): (o/'checkpoints'/'run').mkdir(); (o/'mixed.png').touch(); raise error
    assert everything(here)==before

@pytest.mark.parametrize('out', [None, 'a/b', 'there', 'begun'])
def test_ctrl_c_at_any_line(here, out):
    "Until the run has its folder: nothing is left, no lock either, and what was there before stays"
    import fastmix.checkpoint.files as files, fastmix.runs as runs
    (here/'there').mkdir()
    with run_folder({**args, 'out':'begun'}, 'x'): pass
    before,left = everything(here),None
    def at_line(frame, event, arg):
        nonlocal left
        if frame.f_code.co_filename not in (files.__file__,runs.__file__): return
        if event=='line' and left is not None:
            left -= 1
            if left<0: left = None; raise KeyboardInterrupt
        return at_line
    for n in range(1000):
        left,was,done = n,sys.gettrace(),False
        try:
            sys.settrace(at_line)
            with run_folder({**args, 'out':out}, 'x'):
                sys.settrace(was)
                done,left = left is not None,None
                raise KeyboardInterrupt
        except KeyboardInterrupt: pass
        finally: sys.settrace(was)
        assert everything(here)==before and not files.locked_folders, n
        if done: break
    assert 30<n<999

def left_at_once(p, here):
    "Interrupted: no traceback, the exit code of a signal, nothing left of a run without one epoch"
    p.send_signal(signal.SIGINT)
    said = p.communicate()[0]
    assert p.returncode in (-signal.SIGINT, 128+signal.SIGINT) and 'Traceback' not in said, said
    assert everything(here)==[] or any(here.glob('runs/*/checkpoints/run/epoch_*[1-9]*.pth')), everything(here)
    shutil.rmtree(here/'runs', ignore_errors=True)

def test_ctrl_c_while_it_loads(here):
    "From the first moment on, while Python imports"
    for seconds in (.3, 1.5, 4):
        p = started('-m', 'fastmix.train', '--epochs', 500, cwd=here)
        try: p.wait(seconds); raise AssertionError(p.communicate()[0])
        except subprocess.TimeoutExpired: left_at_once(p, here)

@pytest.mark.parametrize('file', ['args.json','history.csv'])
def test_ctrl_c_with_a_folder(folder, here, start, file):
    "As soon as the run has one, and when its fit has just begun"
    p = start(folder, '--epochs', 500, *small_args, cwd=here)
    while not (here/'runs'/folder.name/file).exists():
        assert p.poll() is None, p.communicate()[0]
        time.sleep(.01)
    left_at_once(p, here)

@pytest.mark.filterwarnings('ignore')
def test_home_and_dots(folder, here, unpainted, monkeypatch):
    "`~` is the home directory, and `..` makes no folder"
    (here/'home').mkdir(); (here/'work').mkdir(); monkeypatch.chdir(here/'work')
    for o in ('HOME','USERPROFILE'): monkeypatch.setenv(o, str(here/'home'))
    for o in ('~/x','no/../../y'): train_cli(folder, epochs=1, out=o, **small)
    assert files(here/'home'/'x')==files(here/'y')==FILES and everything(here/'work')==[]

# --- a folder from somebody else

class Payload:
    "Whoever unpickles it makes a file"
    def __init__(self, mark): self.mark = str(mark)
    def __reduce__(self): return open, (self.mark,'w')

@pytest.mark.filterwarnings('ignore')
def test_no_pickle_is_read(folder, here, unpainted):
    "A finished run is reported, compared and continued from numbers and JSON; what is in its `model.pkl` is not run"
    kw = dict(epochs=1, out='out', compare=True, **small)
    acc = train_cli(folder, **kw)
    for o in ('out','out/plain'): (here/o/'model.pkl').write_bytes(pickle.dumps(Payload(here/'mark')))
    assert train_cli(folder, resume=True, **kw)==acc
    (here/'out'/'plain'/'model.pkl').unlink()
    train_cli(folder, **kw)
    assert not (here/'mark').exists()

@pytest.mark.filterwarnings('ignore')
def test_no_link_is_followed(folder, here, unpainted):
    "Whatever in the folder is a link, files outside stay as they are and none is added"
    (here/'other').mkdir(); (here/'other'/'precious').write_text('here')
    kw = dict(path=folder, epochs=1, **small)
    train_cli(out='whole', **kw)
    for link,to in {'history.csv':'precious', 'curves.png':'precious', '.model.pkl.tmp':'precious', 'plain':'', 'checkpoints/run':'', 'checkpoints/run/lock':'precious'}.items():
        shutil.rmtree(here/'out', ignore_errors=True); shutil.copytree(here/'whole', here/'out'); (here/'out'/'model.pkl').unlink()
        f = here/'out'/link
        if f.is_dir(): shutil.rmtree(f)
        f.unlink(missing_ok=True); f.symlink_to(here/'other'/to)
        with pytest.raises(BadArgument, match=f'{link} is a link'): train_cli(out='out', compare=True, **kw)
        assert everything(here/'other')==['precious'] and (here/'other'/'precious').read_text()=='here'
    (here/'runs').mkdir(); (here/'runs'/folder.name).symlink_to(here/'whole')
    train_cli(**kw)
    assert sorted(os.listdir(here/'runs'))==[folder.name,f'{folder.name}-2']

def cut(f): f.write_bytes(f.read_bytes()[:1000])
damages = {'args []':(lambda d: (d/'args.json').write_text('[]'), {}, 'args.json is damaged'), 'args cut':(lambda d: (d/'args.json').write_text('{"epo'), {}, 'args.json is damaged'),
    'args deep':(lambda d: (d/'args.json').write_text('['*100_000), {}, 'args.json is damaged'), 'args bytes':(lambda d: (d/'args.json').write_bytes(b'\xff{}'), {}, 'args.json is damaged'),
    'args pipe':(lambda d: ((d/'args.json').unlink(), os.mkfifo(d/'args.json')), {}, 'args.json is damaged'),
    'model':(lambda d: cut(d/'model.safetensors'), dict(resume=True), 'model.safetensors is damaged'), 'other model':(lambda d: shutil.copy(d/'other.safetensors', d/'model.safetensors'), dict(resume=True), 'model.safetensors is damaged'),
    'checkpoints':(lambda d: ((d/'model.pkl').unlink(), *map(cut, d.glob('checkpoints/run/*.pth'))), {}, 'is whole'),
    'history':(lambda d: ((d/'plain'/'model.pkl').unlink(), (d/'history.csv').write_bytes(b'a\n"')), dict(compare=True), 'history.csv')}
@pytest.fixture(scope='module')
def whole(tmp_path_factory, folder):
    from safetensors.torch import save_file
    import torch
    d = tmp_path_factory.mktemp('whole')/'out'
    train_cli(folder, epochs=1, out=d, compare=True, **small)
    save_file({'x':torch.zeros(2)}, d/'other.safetensors')
    return d

@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('damage', damages)
def test_damaged_folders(whole, folder, here, damage):
    "Named, with what to do; no traceback and nothing that waits for ever"
    do,kw,says = damages[damage]
    if 'pipe' in damage and not hasattr(os, 'mkfifo'): pytest.skip('pipes as Unix has them')
    shutil.copytree(whole, here/'out'); do(here/'out')
    with pytest.raises(BadArgument, match=says): train_cli(folder, epochs=1, out='out', **small, **kw)

def test_order_of_files(folder, monkeypatch):
    "By name, whatever order the file system lists them in"
    import fastmix.data as D
    files,get = list_folder(folder),D.get_image_files
    monkeypatch.setattr(D, 'get_image_files', lambda o: get(o)[::-1])
    assert list_folder(folder)==files and [o.name for o in files[:16]]==sorted(o.name for o in (folder/'train'/'eight').iterdir())

# --- output for people

def test_a_log(folder, here, run):
    "A line an epoch, no bars, nothing on stderr; with names that are not UTF-8, hold formulas and line breaks, to an ASCII terminal. No fork, and trained as one"
    d = here/os.fsdecode(b'pics-\xff')
    shutil.copytree(folder, d)
    for side in ('train','val'):
        for old,new in dict(zero=b'\xfe$x_', three=b'a\nb').items(): (d/side/old).rename(d/side/os.fsdecode(new))
    p = subprocess.run(cli(d, '--epochs', 2, '--ema', .5, *small_args), cwd=here, capture_output=True, env={**os.environ, 'OMP_NUM_THREADS':'1', 'PYTHONIOENCODING':'ascii'})
    assert p.returncode==0 and p.stderr==b'', p.stderr
    lines = p.stdout.decode('ascii').splitlines()
    assert [l.partition(':')[0] for l in lines[1:3]]==['epoch 1/2','epoch 2/2'] and 'valid_loss' in lines[1] and 'ema_accuracy' in lines[1]
    assert len(lines)==5 and '\r' not in p.stdout.decode() and lines[-1].startswith('written to runs/pics-')
    assert files(here/'runs'/d.name)==FILES
    assert run(d, '--epochs', 2, '--ema', .5, *small_args, '--out', 'fork', cwd=here).returncode==0
    same_run(here/'runs'/d.name, here/'fork')

def test_a_terminal(here):
    "Bars, where somebody is looking; on the digits"
    pty = pytest.importorskip('pty', reason='terminals as Unix has them')
    ours,theirs = pty.openpty()
    p = subprocess.Popen(cli('--epochs', 1, '--bs', 256), cwd=here, stdout=theirs, stderr=subprocess.PIPE, env={**os.environ, 'OMP_NUM_THREADS':'1'})
    os.close(theirs); said = b''
    while True:
        try: new = os.read(ours, 10_000)
        except OSError: break
        if not new: break
        said += new
    os.close(ours)
    assert p.wait()==0 and b'epoch 1/1:' not in said and b'train_loss' in said and '█'.encode() in said

def test_list_archs(capsys):
    assert train_cli(list_archs=True) is None
    names = capsys.readouterr().out.split()
    assert {'small','xresnet18','resnet18'}<=set(names) and len(names)==len(set(names))

def test_a_batch_larger_than_the_data(folder, here):
    with pytest.raises(BadArgument, match='--bs 500'): train_cli(folder, bs=500, workers=0)

@pytest.mark.parametrize('args,says', [(['nowhere'], 'fastmix-train: nowhere: no such folder'), (['--mixup','-1'], 'fastmix-train: --mixup -1.0: must be'), (['--epochs','many'], 'invalid int value'),
                                       (['--arch','nothing'], 'fastmix-train: --arch nothing: not known')])
def test_one_line_and_exit_code_2(here, run, args, says):
    p = run(*args, cwd=here)
    assert p.returncode==2 and says in p.stderr and 'Traceback' not in p.stderr+p.stdout
    assert len([l for l in p.stderr.splitlines() if l.startswith('fastmix-train: ')])<=1 and everything(here)==[]

def test_no_room(folder, here):
    "A file that cannot be written, here for a limit of the system: one line, exit code 1, and nothing is left of a run without one epoch"
    resource = pytest.importorskip('resource', reason='limits as Unix has them')
    p = subprocess.run(cli(folder, '--epochs', 1, *small_args, '--out', 'out'), cwd=here, capture_output=True, text=True, env={**os.environ, 'OMP_NUM_THREADS':'1', 'MPLCONFIGDIR':str(here.parent)},
                       preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (4000,4000)))
    assert p.returncode==1 and 'Traceback' not in p.stderr+p.stdout and 'too large' in p.stderr, p.stdout+p.stderr
    assert p.stderr.strip().splitlines()[-1].startswith('fastmix-train: ') and everything(here)==[]

def wait_for(d, rows, p):
    "Until the history has so many epochs"
    f = Path(d)/'history.csv'
    for _ in range(3000):
        if p.poll() is not None: raise AssertionError(p.communicate()[0][-3000:])
        if f.exists() and len(f.read_text().splitlines())>rows: return
        time.sleep(.05)
    raise AssertionError('too slow')

def test_kill_and_signals(folder, here, start, run):
    """A run that is killed, told to terminate and interrupted, and continued each time by the same command, ends as an undisturbed one: weights byte by
    byte, history but for times"""
    args = [folder, *small_args, '--lr', .01, '--ema', .9, '--epochs', 9]
    q = run(*args, '--out', 'a', cwd=here)
    assert q.returncode==0, q.stderr[-3000:]
    p = start(*args, '--out', 'b', cwd=here); wait_for(here/'b', 1, p); p.kill(); p.wait()
    assert not (here/'b'/'model.pkl').exists()
    p = start(*args, '--out', 'b', cwd=here); wait_for(here/'b', 3, p); p.send_signal(signal.SIGTERM)
    said = p.communicate()[0]
    assert p.returncode==128+signal.SIGTERM and 'Traceback' not in said and 'stopping at the end of this epoch' in said
    p = start(*args, '--out', 'b', cwd=here); wait_for(here/'b', 5, p); p.send_signal(signal.SIGINT)
    said = p.communicate()[0]
    assert p.returncode==128+signal.SIGINT and 'Traceback' not in said
    q = run(*args, '--out', 'b', cwd=here)
    assert q.returncode==0, q.stdout+q.stderr
    same_run(here/'a', here/'b')
    assert list(history(here/'b').epoch)==list(range(9))
    q = run(*args, '--out', 'b', '--resume', cwd=here)
    assert q.returncode==0 and 'finished' in q.stdout
    q = run(*args, '--out', 'b', cwd=here)
    assert q.returncode==2 and 'holds a finished run' in q.stderr
    q = run(*args[:-1], 18, '--out', 'b', cwd=here)
    assert q.returncode==2 and '--epochs 9, not 18' in q.stderr

@pytest.mark.skipif(not hasattr(os, 'killpg'), reason='groups of processes as Unix has them')
def test_a_signal_to_all_processes(folder, here, start):
    "As a terminal and a cluster send it, to those that load data too: the epoch is ended, and the run goes on from there"
    p = start(folder, '--epochs', 500, '--size', 16, '--bs', 16, '--workers', 1, '--out', 'out', cwd=here)  # a fork has a group of its own
    wait_for(here/'out', 1, p); os.killpg(p.pid, signal.SIGTERM)
    said = p.communicate()[0]
    assert p.returncode==128+signal.SIGTERM and 'Traceback' not in said and said.count('stopping at the end')==1, said
    assert len(history(here/'out'))==said.count('epoch ') and any((here/'out'/'checkpoints'/'run').glob('*.pth'))

def test_two_processes(folder, here, start_any):
    "Several processes, unchanged: one folder, written once; killed and continued it ends the same. They have the variables that a launcher sets, and are forks"
    pytest.importorskip('accelerate', reason='an extra: pip install fastmix[distributed]')
    from fastmix.checkpoint.files import read_checkpoint
    def args(out): return ['-m', 'fastmix.train', str(folder), *map(str, small_args), '--lr', '.01', '--epochs', '4', '--out', out]
    def launch(out): return [start_any(*args(out), cwd=here, env=o) for o in rank_variables(2)]
    def end_well(ps):
        said = [p.communicate()[0] for p in ps]
        assert not any(p.returncode for p in ps) and [o.count('written to') for o in said]==[1,0], said
    end_well(launch('a'))
    assert files(here/'a')==FILES and list(history(here/'a').epoch)==[0,1,2,3]
    assert read_checkpoint(sorted((here/'a'/'checkpoints'/'run').glob('*.pth'))[-1])['run']['processes']==2
    ps = launch('b'); wait_for(here/'b', 1, ps[0])
    for p in ps: p.kill()
    for p in ps: assert p.wait()==-signal.SIGKILL
    end_well(launch('b'))
    same_run(here/'a', here/'b')

@pytest.mark.full
def test_torchrun(folder, here):
    "On CPUs accelerate starts several processes by MPI only, so torch's own launcher does"
    pytest.importorskip('accelerate', reason='an extra: pip install fastmix[distributed]')
    p = started('-m', 'torch.distributed.run', '--standalone', '--nproc_per_node', 2, '-m', 'fastmix.train', folder, *small_args, '--epochs', 1, '--out', 'a', cwd=here)
    said = p.communicate()[0]
    assert p.returncode==0 and said.count('written to')==1 and files(here/'a')==FILES, said[-3000:]

def test_minutes(folder, here, unpainted, capsys):
    "`--max-minutes` ends in the middle of an epoch, as often as it takes, with nothing but the checkpoint; the end is the same, and both options may change on the way"
    kw = dict(path=folder, epochs=2, **small)
    train_cli(out='a', **kw)
    assert train_cli(out='b', max_minutes=0, **kw) is None and 'the same command with --out b goes on' in capsys.readouterr().out
    assert files('b')==['args.json','history.csv','mixed.png'] and (here/'b/checkpoints/run/epoch_0000_batch_000001.pth').is_file()
    assert train_cli(out='b', max_minutes=0, **kw) is None
    assert train_cli(out='b', every_min=5, **kw)>0
    assert 'continues after 0 of 2 epochs and 2 of 3 batches' in capsys.readouterr().out
    same_run('a', 'b')

@pytest.mark.full
def test_signal_between_batches(here, start, run):
    "With `--every-min` a signal ends the command after a batch"
    args = ['--epochs', 60, '--bs', 8, '--every-min', 5, '--out', 'a']
    p = start(*args, cwd=here); wait_for(here/'a', 1, p); p.send_signal(signal.SIGUSR1)
    said = p.communicate()[0]
    assert p.returncode==128+signal.SIGUSR1 and 'stopping after this batch' in said and 'Traceback' not in said
    assert any('batch' in f.name for f in (here/'a/checkpoints/run').glob('*.pth'))
    q = run(*args, '--max-minutes', 0, cwd=here)
    assert q.returncode==75 and 'the time is up' in q.stderr and 'continues after' in q.stdout
