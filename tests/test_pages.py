"""The pages that teach: furniture on each tutorial, pictures that are described, code that fits the page, links that lead where they say."""
import itertools,json,re
import pytest
from house import directives, exports, load, modules, name, nbs, notebooks, package, root, text

tutorials = [o for o in notebooks() if o.parent.name=='tutorials']
cards = [o for o in notebooks() if o.parent.name=='cards']
teaching = tutorials+cards+[nbs/o for o in ('glossary.ipynb', 'index.ipynb', 'kinds.ipynb')]
one = lambda pages: pytest.mark.parametrize('nb', pages, ids=name)

def cells(nb, kind): return [c for c in load(nb)['cells'] if c['cell_type']==kind]
def prose(nb): return '\n\n'.join(text(c['source']) for c in cells(nb, 'markdown'))
def shown(c): return not {'hide', 'include', 'echo'} & set(directives(c))
def pictures(c): return [o for o in c.get('outputs', []) if any(k.startswith('image/') for k in o.get('data', {}))]

def test_there_are_pages(): assert len(tutorials)>9 and len(cards)>7

@one(tutorials)
def test_furniture(nb):
    "Each tutorial says what it needs, teaches and takes, sums up, asks and answers, and leads on"
    t = prose(nb)
    for o in ('**You need:**', '**You will learn:**', '**Time:**', '\n## Summary\n', '\n## Questions\n', '\n## Exercises\n', '\n## Further reading\n'):
        assert o in t, f'{name(nb)}: no {o.strip()}'
    asked,answered = (re.findall(r'^\d+\. ', o, flags=re.M) for o in re.search(r'## Questions\n(.*?)<details><summary>Answers</summary>\n(.*?)</details>', t, flags=re.S).groups())
    assert 8 <= len(asked) <= 10 and len(asked)==len(answered), f'{name(nb)}: {len(asked)} questions, {len(answered)} answers'

@one(tutorials)
def test_exercises(nb):
    "Each exercise is marked easy or hard, and has a solution in code that the tests run, some with `-m full`"
    t = prose(nb)
    exercises = re.findall(r'^(\d+)\. (.*)$', t.split('\n## Exercises\n')[1].split('\n## ')[0], flags=re.M)
    assert len(exercises)>2
    for _,o in exercises: assert o.startswith(('*Easy.*', '*Hard.*')), f'{name(nb)}: {o}'
    solved = {directives(c)['solution'].split(',')[0] for c in cells(nb, 'code') if 'solution' in directives(c)}
    assert solved=={n for n,_ in exercises}, f'{name(nb)}: solutions for {sorted(solved)}'

@one(tutorials)
def test_colab(nb):
    "The link to Colab stands in a cell of its own: nbdev makes front matter of the title's cell and drops the rest"
    link = f'https://colab.research.google.com/github/fastmix/fastmix/blob/main/nbs/tutorials/{nb.name}'
    found = [i for i,c in enumerate(load(nb)['cells']) if link in text(c['source'])]
    assert found and found[0]>0, f'{name(nb)}: no link to Colab below the title'

@one(notebooks())
def test_pictures_are_described(nb):
    "Each picture says what it shows: to those who see it in a caption, to those who do not in an alternative text"
    for c in cells(nb, 'code'):
        if not pictures(c) or 'hide' in directives(c): continue
        for o in ('fig-alt','fig-cap'): assert len(directives(c).get(o, ''))>(20 if o=='fig-alt' else 4), f'{name(nb)}, cell {c["id"]}: no {o}'

@one(teaching)
def test_code_fits(nb):
    "Code that is shown needs no sideways scrolling: 80 columns, and a cell is short"
    for c in cells(nb, 'code'):
        if not shown(c): continue
        lines = [l for l in text(c['source']).splitlines() if not l.startswith('#|')]
        for l in lines: assert len(l)<=80, f'{name(nb)}, cell {c["id"]}: {len(l)} columns: {l}'
        assert len(lines)<=32, f'{name(nb)}, cell {c["id"]}: {len(lines)} lines'

@one(notebooks())
def test_code_in_the_prose_fits(nb):
    "Fenced and indented lines in the prose have 80 columns too"
    fenced = re.findall(r'^```\w*\n(.*?)^```', prose(nb), flags=re.M|re.S)
    for l in '\n'.join(fenced).splitlines()+re.findall(r'^    (\S.*)', prose(nb), flags=re.M): assert len(l)<=80, f'{name(nb)}: {len(l)} columns: {l}'

def test_sentences_are_no_output():
    "A sentence that is computed is Markdown: printed, its backticks and stars would be seen"
    for nb in (nbs/'evidence.ipynb', *cards):
        for c in cells(nb, 'code'):
            if 'hide' not in directives(c): assert not any(o.get('name')=='stdout' and '`' in text(o['text']) for o in c.get('outputs', [])), f'{name(nb)}, cell {c["id"]}'

@one(teaching)
def test_comments_stand_above(nb):
    for c in cells(nb, 'code'):
        if shown(c): assert not re.search(r'\S {2,}# ', text(c['source'])), f'{name(nb)}, cell {c["id"]}: a comment beside code'

@one(cards[1:])
def test_card(nb):
    "Each method's card has the same form"
    t = prose(nb)
    for o in ('## How to use it', '## Settings', 'title="What works"', 'title="What it costs"', 'title="Traps"', '## Measured effect', '## Attribution', 'https://arxiv.org/'):
        assert o in t, f'{name(nb)}: no {o}'
    assert any(pictures(c) for c in cells(nb, 'code')), f'{name(nb)}: no picture'

def test_glossary_is_linked():
    "Each link into the glossary leads to a term"
    terms = {re.sub(r'[^\w -]', '', o.lower()).strip().replace(' ', '-') for o in re.findall(r'^### (.*)$', prose(nbs/'glossary.ipynb'), flags=re.M)}
    for nb in notebooks():
        for o in re.findall(r'glossary\.ipynb#([^)]+)\)', prose(nb)): assert o in terms, f'{name(nb)}: {o}'

def test_home_page():
    "What it is, a picture, the headline and code stand on the first screen; the README's first example advises nothing against itself"
    cs = [c for c in load(nbs/'index.ipynb')['cells'] if 'hide' not in directives(c)]
    first = cs[:6]
    assert any(pictures(c) for c in first)
    assert any('±' in json.dumps(c.get('outputs', []), ensure_ascii=False) for c in first), 'no result with its error bar'
    code = next(text(c['source']) for c in first if 'fit_long' in text(c['source']) and shown(c))
    assert len(code.splitlines())<=4
    assert 'are few for mixing' not in (root/'README.md').read_text(encoding='utf-8')

# --- what the site makes of them

def test_foreign_names_are_not_linked():
    from fastmix._docs import drop_foreign_links
    c = dict(cell_type='markdown', source="fastai's own [`MixUp`](https://fastmix.github.io/fastmix/x.html#mixup), timm's [`Mixup`](/y.html#mixup) of fastmix, "
             "our [`MixUp`](https://fastmix.github.io/fastmix/x.html#mixup), fastai's [`Learner`](https://docs.fast.ai/learner.html#learner)")
    drop_foreign_links(c)
    assert c['source'].startswith("fastai's own `MixUp`, ") and "our [`MixUp`](" in c['source'] and "fastai's [`Learner`](" in c['source']

def test_types_have_plain_names():
    from fastmix._docs import drop_main
    c = dict(cell_type='code', outputs=[dict(data={'text/markdown':['def f(\n', '    mask:__main__.LazyMask\n', ')->__main__.Plan:']}), dict(text='__main__.x')])
    drop_main(c)
    assert ''.join(c['outputs'][0]['data']['text/markdown'])=='def f(\n    mask:LazyMask\n)->Plan:' and c['outputs'][1]['text']=='__main__.x'

def test_nothing_is_shown_twice():
    from fastcore.nbio import dict2nb, mk_cell
    from fastmix._docs import drop_twins
    sources = ['#| echo: false\nshow_doc(EMA.averaged)', "show_doc(EMA.averaged, name='EMA.averaged')", 'show_doc(EMA)']
    nb = dict2nb(dict(cells=[mk_cell(o) for o in sources], metadata={}, nbformat=4, nbformat_minor=5))
    drop_twins(nb).begin()
    assert [c.source for c in nb.cells]==sources[1:]

def test_solutions_are_folded():
    from fastcore.nbio import dict2nb, mk_cell
    from fastmix._docs import fold_solutions
    nb = dict2nb(dict(cells=[mk_cell('#| solution: 2\n1+1'), mk_cell('1+2')], metadata={}, nbformat=4, nbformat_minor=5))
    for c in nb.cells: c.directives_ = c.directives
    fold_solutions(nb).begin()
    assert [c.cell_type for c in nb.cells]==['markdown','code','markdown','code']
    assert 'collapse="true"' in nb.cells[0].source and 'exercise 2' in nb.cells[0].source and nb.cells[2].source==':::'

def test_readme_pictures_are_described():
    for alt in re.findall(r'!\[([^\]]*)\]\(index_files', (root/'README.md').read_text(encoding='utf-8')): assert len(alt)>20

def test_look_of_the_site():
    "Keys and rules without which a page was seen to break"
    q,css = ((nbs/o).read_text(encoding='utf-8') for o in ('_quarto.yml','styles.css'))
    for o in ('page-navigation: true', 'image: /card.png'): assert o in q
    for o in ('.description code', '.cell-output-display pre', 'main li code', 'table:has(> colgroup)', '.nav-page-text', 'main pre:not(.sourceCode)', 'th, figcaption) code'): assert o in css

def test_points_in_the_notebook():
    "The points of tutorial 03, which ship with it so that they are drawn anywhere, are those of the result file: `python bench/cards.py --points` writes them"
    import importlib.util
    spec = importlib.util.spec_from_file_location('cards', root/'bench/cards.py')
    m = importlib.util.module_from_spec(spec); spec.loader.exec_module(m)
    nb = next(o for o in tutorials if 'why_80' in o.name)
    source = next(text(c['source']) for c in cells(nb, 'code') if 'points = json' in text(c['source']))
    assert json.loads(source.split('"""')[1])==m.points()

@pytest.mark.parametrize('m', modules())
def test_an_example_comes_first(m):
    "Before a page defines anything it shows how that is used: indented or fenced lines, or a cell that is shown"
    def defines(c): return exports(c) and not {'hide','exporti'} & set(directives(c)) and re.search(r'^(def|class|async def|[A-Za-z_]\w* *=)', text(c['source']), flags=re.M)
    before = list(itertools.takewhile(lambda c: not defines(c), load(modules()[m])['cells']))
    prose = any(re.search(r'^(    \S|```)', text(c['source']), flags=re.M) for c in before if c['cell_type']=='markdown')
    assert prose or any(c['cell_type']=='code' and shown(c) and not exports(c) and 'default_exp' not in directives(c) for c in before), f'{m}: no example at the top'
