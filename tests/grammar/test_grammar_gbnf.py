"""llama.cpp's notation: errors with their place, and exactly the texts that a grammar means."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_vocabs import bpe

import ikq
from ikq.grammar import compile_constraint
from ikq.grammar.gbnf import parse_gbnf

pytest.importorskip("llguidance")

TOKENIZER = ikq.Tokenizer(bpe())

ERRORS = (
    (
        'root ::= "a',
        'the end at line 1, column 12, where the `"` that ends the text from line 1, column 10 is',
    ),
    ("root ::= [a-", "the end at line 1, column 13"),
    ("root ::= [z-a]", "from 'z' to 'a' before line 1, column 14 is empty"),
    ("root ::= []", "characters at line 1, column 10 are none"),
    ("root ::= b", "uses the rule `b` at line 1, column 10"),
    ('x ::= "a"', "no rule `root`"),
    ("", "no rule `root`"),
    ('root = "a"', "`=` at line 1, column 6, where `::=` is expected"),
    ('root ::= ("a"', "the end at line 1, column 14, where `)` is"),
    ('root ::= "a")', "`)` at line 1, column 13, where the end of the line is"),
    ('root ::= "a"{3,1}', "a number from 3 on"),
    ('root ::= "a"{}', "a number of at most 6 digits"),
    ('root ::= "a"{12345678}', "a number of at most 6 digits"),
    ('root ::= "\\q"', "`q` at line 1, column 12, where one of \\n"),
    ('root ::= "\\x1"', "2 hexadecimal digits"),
    ('root ::= "\\uD800"', "4 hexadecimal digits of a character"),
    ('root ::= "a"\n| "b"', "`|` at line 2, column 1, where a rule's name is"),
    ('root ::= a\n\na ::= "x" §', "`§` at line 3, column 11, where the end of the line is"),
    ("root ::= <x", "the `>` that ends the token from line 1, column 10"),
    ("root ::= " + "(" * 300, "nests more than 200 parentheses at line 1, column 210"),
)


@pytest.mark.parametrize(("text", "message"), ERRORS)
def test_errors(text, message):
    with pytest.raises(ikq.GrammarError) as e:
        compile_constraint(TOKENIZER, gbnf=text)
    assert message in str(e.value)
    assert e.value.place is None or e.value.place in str(e.value)


def test_errors_of_the_compiler():
    with pytest.raises(ikq.GrammarError, match="cannot be compiled.*<nothing>"):
        compile_constraint(TOKENIZER, gbnf="root ::= <nothing>")


def allows(constraint, text):
    tokens = list(text.encode())  # bytes are tokens of this vocabulary
    if constraint.n_allowed(tokens) < len(tokens):
        return False
    trial = constraint.clone()
    for token in tokens:
        trial.accept(token)
    return trial.is_complete


LANGUAGES = (
    ('root ::= "yes" | "no" # either', ["yes", "no"], ["", "y", "yesno", "maybe"]),
    ('root ::= ("a" | "b")+ "."', ["a.", "abba."], ["", ".", "ab"]),
    ('root ::= [^"\\n]* "\\""', ['"', 'ab"'], ['a\n"', "a"]),
    ('root ::= "\\x41\\u00e4\\U0001F600\\t\\]"', ["Aä😀\t]"], ["A"]),
    ('root ::= . . "x"?', ["ab", "\n\n", "äöx"], ["a", "abc"]),
    ('root ::= "a"{2} "b"{1,} "c"{0,2}', ["aab", "aabbbcc"], ["ab", "aaccc", "aabccc"]),
    ("root ::= [a-c_-] [x-]", ["ax", "_-", "--"], ["dx", "a"]),
    ('root ::= a-rule\na-rule ::= "x" | (\n  "y"\n  | "z"\n)\n', ["x", "y", "z"], ["", "xy"]),
    ('root ::= "" | "a"', ["", "a"], ["aa"]),
    ('root ::=\n  "a" |\n  "b"', ["a", "b"], ["ab"]),
    ('root ::= "a" root "b" | ""', ["", "ab", "aaabbb"], ["a", "aab", "ba"]),
    ('root ::= root "a" | "b"', ["b", "baa"], ["a", "bab"]),
    # lexemes that are beginnings of others
    (
        'root ::= "a" "b" x | "ab" "c" x\nx ::= "" | "(" x ")"',
        ["ab", "abc", "ab(())", "abc()"],
        ["abcc", "ac"],
    ),
    ('root ::= x\nx ::= [a-z]* "z" y\ny ::= "" | "." y', ["z", "azz..", "zzz"], ["a", "az.a"]),
    ("root ::= <|im_start|> [a-z]", [], ["<|im_start|>a", "a"]),
)


@pytest.mark.parametrize(("text", "good", "bad"), LANGUAGES)
def test_languages(text, good, bad):
    constraint = compile_constraint(TOKENIZER, gbnf=text)
    assert [t for t in good if not allows(constraint, t)] == []
    assert [t for t in bad if allows(constraint, t)] == []


def test_tokens():
    start = TOKENIZER.id_of("<|im_start|>")
    for text in ("root ::= <|im_start|> [a-z]", f"root ::= <[{start}]> [a-z]"):
        constraint = compile_constraint(TOKENIZER, gbnf=text)
        assert constraint.n_allowed([start, ord("a")]) == 2
        assert constraint.n_allowed([ord("a")]) == 0
    constraint = compile_constraint(TOKENIZER, gbnf=f'root ::= !<[{start}]> "a"')
    assert constraint.n_allowed([ord("x"), ord("a")]) == 2
    assert constraint.n_allowed([start]) == 0


def written(node):
    """GBNF of a tree: a text, `(kind, parts)`, or `(kind, part, least, most)`."""
    if isinstance(node, str):
        return '"' + node + '"' if node != "?" else "x"
    kind, *rest = node
    if kind == "seq":
        return "(" + " ".join(written(n) for n in rest[0]) + ")"
    if kind == "alt":
        return "(" + " | ".join(written(n) for n in rest[0]) + ")"
    return f"{written(rest[0])}{{{rest[1]},{'' if rest[2] is None else rest[2]}}}"


def ends(node, text, at, rule, depth=0):
    """Places up to which a tree may go from `at`."""
    if node == "?":
        return ends(rule, text, at, rule, depth + 1) if depth < 12 else set()
    if isinstance(node, str):
        return {at + len(node)} if text.startswith(node, at) else set()
    kind, *rest = node
    if kind == "alt":
        return set().union(*(ends(n, text, at, rule, depth) for n in rest[0]))
    if kind == "seq":
        places = {at}
        for n in rest[0]:
            places = set().union(*(ends(n, text, p, rule, depth) for p in places))
        return places
    part, least, most = rest
    found, places = ({at} if least == 0 else set()), {at}
    for i in range(1, (most if most is not None else least + len(text)) + 1):
        places = set().union(*(ends(part, text, p, rule, depth) for p in places))
        if i >= least:
            found |= places
        if not places:
            break
    return found


LITERALS = st.sampled_from(["a", "b", "ab", "ba", "aab"])


def trees(leaves):
    return st.recursive(
        leaves,
        lambda t: st.one_of(
            st.tuples(st.just("seq"), st.lists(t, min_size=1, max_size=3)),
            st.tuples(st.just("alt"), st.lists(t, min_size=1, max_size=3)),
            st.tuples(st.just("rep"), t, st.integers(0, 1), st.sampled_from([1, 2, None])),
        ),
        max_leaves=6,
    )


TEXTS = ["".join(t) for n in range(5) for t in itertools.product("ab", repeat=n)]


@given(trees(LITERALS))
def test_exactly_the_texts_of_a_grammar(tree):
    """All texts of up to four letters, for grammars that do not call themselves ..."""
    text = f"root ::= {written(tree)}"
    parse_gbnf(text)
    constraint = compile_constraint(TOKENIZER, gbnf=text)
    expected = [t for t in TEXTS if len(t) in ends(tree, t, 0, tree)]
    assert [t for t in TEXTS if allows(constraint, t)] == expected


@given(trees(LITERALS), trees(LITERALS))
def test_exactly_the_texts_of_a_recursive_grammar(before, after):
    """... and for those that do: something, the same within, something."""
    rule = ("alt", ["", ("seq", [("seq", ["(", before]), "?", ("seq", [after, ")"])])])
    text = f"root ::= x\nx ::= {written(rule)}"
    constraint = compile_constraint(TOKENIZER, gbnf=text)
    for inner in ("", "(ab)"):
        for t in TEXTS[:15]:
            for cut in range(len(t) + 1):
                whole = f"({t[:cut]}{inner}{t[cut:]})"
                assert allows(constraint, whole) == (len(whole) in ends(rule, whole, 0, rule)), (text, whole)
