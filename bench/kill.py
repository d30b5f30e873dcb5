"""Kill a training run at random moments, continue it each time, and compare what it leaves with what an undisturbed run leaves.

    python bench/kill.py                                   # 20 kills of a small fastai run (tests/longrun.py)
    python bench/kill.py --kills 100 --recipe early
    python bench/kill.py --kills 100 --every .05           # saved between batches, every 50 ms: how many batches does each kill cost?
    python bench/kill.py --result history.csv -- some-command --with {folder}   # any command that continues when it is called again

The command is started, killed by SIGKILL some time after its lock appears (so after it has begun to train), and started again, until it has been
killed as often as asked for; then it may end."""
import argparse,random,re,signal,subprocess,sys,tempfile,time
from hashlib import sha256
from pathlib import Path

root = Path(__file__).resolve().parent.parent
p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
p.add_argument('--kills', type=int, default=20)
p.add_argument('--seed', type=int, default=0)
p.add_argument('--within', type=float, default=.5, help='seconds of training within which it is killed')
p.add_argument('--epochs', default='60')
p.add_argument('--workers', default='0')
p.add_argument('--recipe', default='one_cycle')
p.add_argument('--every', type=float, help='seconds between two saves in the middle of epochs; without it each epoch is saved')
p.add_argument('--result', action='append', help='file, relative to the folder, that must be the same in the end (end.json)')
p.add_argument('command', nargs='*', help='{folder} in it becomes the folder of the run')
args = p.parse_args()
command = args.command or [sys.executable, str(root/'tests'/'longrun.py'), '{folder}', args.recipe, args.epochs, args.workers,
                           *([] if args.every is None else ['run', str(args.every)])]
rng = random.Random(args.seed)

def start(folder):
    return subprocess.Popen([o.format(folder=folder) for o in command], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)

def end(proc):
    err = proc.communicate()[1]
    if proc.returncode: sys.exit(f'The command ended with {proc.returncode}:\n{err[-3000:]}')

def locks(folder): return {f:f.stat().st_mtime_ns for f in folder.rglob('lock')}

def kill(folder):
    "Start the command and kill it; False if it was done before that"
    before,proc = locks(folder),start(folder)
    while proc.poll() is None and locks(folder)==before: time.sleep(.005)
    time.sleep(rng.uniform(0, args.within))
    if proc.poll() is not None:
        end(proc)
        return False
    proc.send_signal(signal.SIGKILL)
    proc.wait()
    proc.stderr.close()
    return True

def done(folder):
    "`(epochs, batches)` that the newest checkpoint has"
    found = [re.fullmatch(r'epoch_(\d+)(?:_batch_(\d+))?', f.stem) for f in folder.rglob('epoch_*.pth')]
    return max(((int(m[1]),int(m[2] or 0)) for m in found if m), default=(0,0))

lost = []
def state(folder):
    epochs,batches = done(folder)
    said = f"{epochs} epochs and {batches} batches saved, {len(list(folder.rglob('.epoch_*.tmp')))} unfinished files"
    if not (folder/'batch').exists() or not (latest := (folder/'batch').read_bytes().strip()): return said
    lost.append(max(0, int(latest)-5*epochs-batches))  # an epoch of tests/longrun.py has 5 batches
    return f'{said}, {lost[-1]} batches lost'

with tempfile.TemporaryDirectory() as a, tempfile.TemporaryDirectory() as b:
    a,b = Path(a),Path(b)
    t = time.time()
    end(start(a))
    print(f'undisturbed: {time.time()-t:.1f} s')
    n = 0
    while n<args.kills and kill(b):
        n += 1
        print(f'killed {n:3d}: {state(b)}', flush=True)
    if n<args.kills: print('the run was done before it could be killed more often: try more --epochs or less --within')
    else: end(start(b))
    same = {f: sha256((a/f).read_bytes()).digest()==sha256((b/f).read_bytes()).digest() for f in args.result or ['end.json']}
    if lost: print(f'batches lost by a kill: {sum(lost)/len(lost):.1f} on average, {max(lost)} at most')
    print(f'{n} kills; the same in the end: {same}')
sys.exit(not all(same.values()))
