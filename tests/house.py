"Where things are, and how to run something in a fresh interpreter: shared by the tests of the house."
import ast,json,os,subprocess,sys
from pathlib import Path

root = Path(__file__).resolve().parent.parent
nbs,package = root/'nbs',root/'fastmix'
groups = ('mix', 'loss', 'loop', 'callbacks', 'runs', 'pictures', 'command')  # folders of rooms, in reading order
plain_groups = ('mix', 'loss', 'loop')  # these know PyTorch and fastcore, not fastai
by_hand = {'__init__', 'all', 'callback', 'hidden', 'checkpoint.__init__', '_docs', '_modidx'}  # modules that come from no notebook

def notebooks(): return sorted(p for p in nbs.rglob('*.ipynb') if not any(o[0] in '._' for o in p.relative_to(nbs).parts))
def name(nb): return nb.relative_to(nbs).with_suffix('').as_posix()
def load(nb): return json.loads(nb.read_text(encoding='utf-8'))
def text(o): return o if isinstance(o, str) else ''.join(o)

def directives(cell):
    "The `#|` lines at the head of a cell, as a dict of name → argument"
    res = {}
    for l in text(cell['source']).splitlines():
        if not l.startswith('#|'): break
        k,_,v = l[2:].strip().replace(':', ' ', 1).partition(' ')
        res[k] = v.strip()
    return res

def module_of(nb):
    "Name of the module that a notebook exports to, or None"
    for c in load(nb)['cells']:
        if 'default_exp' in directives(c): return directives(c)['default_exp']

def exports(cell): return cell['cell_type']=='code' and bool({'export','exports','exporti'} & set(directives(cell)))

def patched(nb):
    "`Class.method` for each public method that a notebook patches into a class; `#| exporti` and `#| hide` are for those that are nobody's business"
    for c in load(nb)['cells']:
        if not exports(c) or {'exporti','hide'} & set(directives(c)): continue
        for o in ast.parse(text(c['source'])).body:
            if isinstance(o, ast.FunctionDef) and o.name[0]!='_' and any(ast.unparse(d).startswith('patch') for d in o.decorator_list):
                yield f'{ast.unparse(o.args.args[0].annotation)}.{o.name}'

def modules():
    "Module → notebook, in reading order: the order of the groups, and the numbers in each"
    nbs_in_order = [nb for g in groups for nb in notebooks() if nb.parent==nbs/g]
    return {m: nb for nb in nbs_in_order+notebooks() if (m := module_of(nb))}

def module_file(m): return package/(m.replace('.', '/')+'.py')
def module_names(): return sorted(p.relative_to(package).with_suffix('').as_posix().replace('/', '.') for p in package.rglob('*.py'))

def python(code, *args, cwd=root, timeout=600, env=None):
    "Run `code` in a fresh interpreter; returns the finished process with `stdout` and `stderr` as text"
    env = {**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONPATH': str(root), **(env or {})}
    env.pop('IN_TEST', None)
    return subprocess.run([sys.executable, '-c', code, *map(str, args)], cwd=cwd, timeout=timeout, env=env,
                          stdin=subprocess.DEVNULL, capture_output=True, text=True)
