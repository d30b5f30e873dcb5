"""`python *args` in a process of its own, without the seconds in which it would import fastai: one process has imported it, and forks for each.
A fork has its own session, folder, variables, output and random numbers; its signals, its exit code and the end of its interpreter are the real ones."""
import json,os,signal,socket,subprocess,sys,tempfile,time
from contextlib import contextmanager

server = """
import gc,importlib,json,os,runpy,sys
import numpy,torch
for o in sys.argv[1:]: importlib.import_module(o)
gc.freeze()   # else a fork copies all that was imported when it ends: two seconds
def become(argv, cwd, env, out, err):
    os.setsid(); os.chdir(cwd); os.environ.clear(); os.environ.update(env)
    for fd,f in enumerate((os.devnull, out, err)): os.dup2(os.open(f, os.O_RDWR|os.O_APPEND), fd)
    numpy.random.seed(); torch.seed()   # else all forks would draw alike, and nobody would see that a seed is missing
    kind = argv[0] if argv[0] in ('-m','-c') else ''
    sys.argv,sys.path[0] = argv[len(kind)>0:],cwd if kind else os.path.dirname(argv[0])
    if kind=='-m': runpy.run_module(argv[1], run_name='__main__', alter_sys=True)
    elif kind=='-c': exec(argv[1], {'__name__':'__main__'})
    else: runpy.run_path(argv[0], run_name='__main__')
for line in sys.stdin:
    ask,*args = json.loads(line)
    if ask=='poll': res = os.waitstatus_to_exitcode(o[1]) if (o := os.waitpid(args[0], os.WNOHANG))[0] else None
    elif not (res := os.fork()):
        become(*args)
        break
    print(json.dumps(res), flush=True)
"""

class Forked:
    "A fork, with what the tests need of `subprocess.Popen`"
    def __init__(self, ask, logs, both, *job):
        self.ask,self.returncode = ask,None
        self.logs = [tempfile.mkstemp(dir=logs) for _ in range(1 if both else 2)]
        for fd,_ in self.logs: os.close(fd)
        self.pid = ask('start', *job, self.logs[0][1], self.logs[-1][1])
    def poll(self):
        if self.returncode is None: self.returncode = self.ask('poll', self.pid)
        return self.returncode
    def wait(self, timeout=600):
        until = time.monotonic()+timeout
        while self.poll() is None:
            if time.monotonic()>until: raise subprocess.TimeoutExpired(f'process {self.pid}', timeout)
            time.sleep(.02)
        return self.returncode
    def communicate(self, timeout=600):
        self.wait(timeout)
        said = [open(f, errors='replace').read() for _,f in self.logs]
        return said[0],said[1] if said[1:] else None
    def send_signal(self, o):
        if self.poll() is None: os.kill(self.pid, o)
    def kill(self): self.send_signal(signal.SIGKILL)

def started(*args, cwd='.', env=None, both=True, **kw):
    "`python *args` in a fresh interpreter; `both`: stderr goes where stdout goes"
    return subprocess.Popen([sys.executable, *map(str, args)], cwd=cwd, env=variables(env), text=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                            stderr=subprocess.STDOUT if both else subprocess.PIPE, **kw)

def variables(env): return {**os.environ, 'OMP_NUM_THREADS':'1', **(env or {})}

def rank_variables(n):
    "What a launcher tells each of `n` processes of one run, with a port that is free"
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    return [dict(RANK=str(r), LOCAL_RANK=str(r), WORLD_SIZE=str(n), MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port)) for r in range(n)]

@contextmanager
def forking(logs, *modules):
    "`started`, forked from a process that has imported `modules`; `logs`: a folder for what is said"
    if not hasattr(os, 'fork'):
        yield started
        return
    with subprocess.Popen([sys.executable, '-c', server, *modules], env=variables({}), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True) as p:
        def ask(*o):
            p.stdin.write(json.dumps(o)+'\n')
            p.stdin.flush()
            return json.loads(p.stdout.readline())
        forks = []
        def start(*args, cwd='.', env=None, both=True):
            forks.append(Forked(ask, logs, both, [*map(str, args)], os.path.abspath(cwd), variables(env)))
            return forks[-1]
        try: yield start
        finally:
            for o in forks: o.kill()
            p.stdin.close()
