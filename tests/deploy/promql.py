"""Checks a PromQL expression against what is exported: every metric, and every label that it selects or groups by."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import promql_parser as p

from thriftree.server.metrics_doc import Family

#: Series -> its labels. What Prometheus adds to each when it scrapes: `job` and `instance`.
Catalog = Mapping[str, frozenset[str]]
_SCRAPED = frozenset({"job", "instance"})


class Unknown(ValueError):
    """A metric or a label that nothing exports."""


def catalog(families: Iterable[Family]) -> dict[str, frozenset[str]]:
    """The series of these families, and Prometheus's own `up`."""
    series = {"up": _SCRAPED}
    for family in families:
        labels = _SCRAPED | set(family.labels)
        if family.kind == "histogram":
            series[f"{family.name}_bucket"] = labels | {"le"}
            series[f"{family.name}_sum"] = series[f"{family.name}_count"] = labels
        else:
            series[family.name] = labels
    return series


def check(expression: str, known: Catalog) -> frozenset[str]:
    """The labels of the expression's result.

    Raises:
        ValueError: it does not parse.
        Unknown: it names a metric or label that is not known.
    """
    return _labels(p.parse(expression), known)


def metrics_in(expression: str) -> set[str]:
    """The names of all series that it reads."""
    return {selector.name for selector in _selectors(p.parse(expression))}


def _selectors(node: Any) -> Iterable[Any]:
    if isinstance(node, p.VectorSelector):
        yield node
    for child in _children(node):
        yield from _selectors(child)


def _children(node: Any) -> list[Any]:
    if isinstance(node, p.Call):
        return list(node.args)
    found = (getattr(node, name, None) for name in ("vector_selector", "expr", "param", "lhs", "rhs"))
    return [child for child in found if child is not None]


def _labels(node: Any, known: Catalog) -> frozenset[str]:
    if isinstance(node, p.VectorSelector):
        return _selected(node, known)
    if isinstance(node, p.AggregateExpr):
        return _grouped(node, _labels(node.expr, known))
    if isinstance(node, p.BinaryExpr):
        return _matched(node, _labels(node.lhs, known), _labels(node.rhs, known))
    inner = [_labels(child, known) for child in _children(node)]
    labels = frozenset().union(*inner) if inner else frozenset[str]()
    if isinstance(node, p.Call) and node.func.name == "histogram_quantile":
        _need({"le"}, labels, node)
        return labels - {"le"}
    return labels


def _selected(node: Any, known: Catalog) -> frozenset[str]:
    if node.name not in known:
        raise Unknown(f"no metric {node.name}")
    _need({matcher.name for matcher in node.matchers.matchers}, known[node.name], node)
    return known[node.name]


def _grouped(node: Any, inner: frozenset[str]) -> frozenset[str]:
    if node.modifier is None:
        return inner if str(node.op) in ("topk", "bottomk") else frozenset()
    named = set(node.modifier.labels)
    _need(named, inner, node)
    return frozenset(named) if node.modifier.type == p.AggModifierType.By else inner - named


def _matched(node: Any, left: frozenset[str], right: frozenset[str]) -> frozenset[str]:
    modifier = node.modifier
    if modifier is not None and modifier.matching is not None:
        _need(set(modifier.matching.labels), left & right, node)
    return left if left else right


def _need(wanted: set[str], there: frozenset[str], node: Any) -> None:
    if missing := wanted - there:
        raise Unknown(f"no label {', '.join(sorted(missing))} in {node.prettify()}")
