//! Cycles: whether there is one, and the one that says most.

use std::collections::VecDeque;
use std::fmt::Write;

use super::graph::{Edge, Graph, Kinds, NOWHERE};
use super::history::History;
use super::violation::{Anomaly, Beyond, Violation};

/// Edges by the node that they leave.
#[derive(Debug)]
pub(super) struct Outgoing {
    first: Vec<u32>,
    edges: Vec<u32>,
}

impl Outgoing {
    fn of(graph: &Graph, keep: impl Fn(&Edge) -> bool) -> Outgoing {
        let mut first = vec![0; graph.transaction_of.len() + 1];
        for edge in graph.edges.iter().filter(|edge| keep(edge)) {
            first[edge.from as usize + 1] += 1;
        }
        for node in 1..first.len() {
            first[node] += first[node - 1];
        }
        let mut next = first.clone();
        let mut edges = vec![0; first[first.len() - 1] as usize];
        for (index, edge) in graph.edges.iter().enumerate().filter(|(_, edge)| keep(edge)) {
            edges[next[edge.from as usize] as usize] = index as u32;
            next[edge.from as usize] += 1;
        }
        Outgoing { first, edges }
    }

    pub(super) fn of_all(graph: &Graph) -> Outgoing {
        Outgoing::of(graph, |_| true)
    }

    pub(super) fn from(&self, node: u32) -> &[u32] {
        &self.edges[self.first[node as usize] as usize..self.first[node as usize + 1] as usize]
    }
}

/// The strongly connected components.
#[derive(Debug)]
pub(super) struct Components {
    /// The component of each node. Edges between components lead to smaller numbers.
    pub(super) of: Vec<u32>,
    /// Nodes in each.
    pub(super) sizes: Vec<u32>,
}

impl Components {
    /// Tarjan's algorithm, with its recursion on a stack of its own.
    pub(super) fn of(graph: &Graph, outgoing: &Outgoing) -> Components {
        const NEW: u32 = u32::MAX;
        let count = graph.transaction_of.len();
        let (mut index, mut low, mut of) = (vec![NEW; count], vec![0; count], vec![NEW; count]);
        let (mut stack, mut path, mut sizes) = (Vec::new(), Vec::new(), Vec::new());
        let mut next = 0;
        for root in 0..count as u32 {
            if index[root as usize] != NEW {
                continue;
            }
            path.push((root, 0));
            while let Some((node, at)) = path.last_mut() {
                let v = *node as usize;
                if *at == 0 {
                    (index[v], low[v]) = (next, next);
                    next += 1;
                    stack.push(*node);
                }
                let Some(edge) = outgoing.from(*node).get(*at) else {
                    path.pop();
                    if let Some((parent, _)) = path.last() {
                        low[*parent as usize] = low[*parent as usize].min(low[v]);
                    }
                    if low[v] == index[v] {
                        let begin = stack.iter().rposition(|n| *n as usize == v).unwrap_or(0);
                        for member in stack.drain(begin..) {
                            of[member as usize] = sizes.len() as u32;
                        }
                        sizes.push(0);
                    }
                    continue;
                };
                *at += 1;
                let to = graph.edges[*edge as usize].to;
                if index[to as usize] == NEW {
                    path.push((to, 0));
                } else if of[to as usize] == NEW {
                    low[v] = low[v].min(index[to as usize]);
                }
            }
        }
        for component in &of {
            sizes[*component as usize] += 1;
        }
        Components { of, sizes }
    }

    pub(super) fn is_acyclic(&self) -> bool {
        self.sizes.iter().all(|size| *size == 1)
    }

    fn is_on_cycle(&self, edge: &Edge) -> bool {
        self.of[edge.from as usize] == self.of[edge.to as usize]
    }
}

/// The classes of cycles, the ones that say most first.
const CLASSES: [(Anomaly, Kinds); 4] = [
    (Anomaly::G0, Kinds::WW),
    (Anomaly::G1c, Kinds(Kinds::WW.0 | Kinds::WR.0)),
    (Anomaly::GSingle, Kinds(Kinds::WW.0 | Kinds::WR.0)),
    (Anomaly::G2, Kinds(Kinds::WW.0 | Kinds::WR.0 | Kinds::RW.0)),
];

/// Edges that a search for a shortest cycle sets out from, at most.
const STARTS: usize = 500;

/// Names a cycle of a graph that has one.
pub(super) fn name(history: &History, graph: &Graph, whole: &Components) -> Violation {
    let beyonds = [
        (Beyond::Nothing, Kinds::INNER),
        (Beyond::Session, Kinds::INNER | Kinds::SESSION),
        (Beyond::RealTime, Kinds::INNER | Kinds::SESSION | Kinds::REAL_TIME),
    ];
    for (beyond, kinds) in beyonds {
        for (anomaly, class) in CLASSES {
            let kinds = kinds | class;
            let rw = if anomaly == Anomaly::GSingle { Kinds::RW } else { Kinds(0) };
            if let Some(cycle) = shortest(graph, whole, kinds, rw) {
                let text = tell(graph, history, &cycle);
                let transactions = cycle.iter().map(|edge| graph.transaction_of[edge.from as usize]);
                let transactions = transactions.filter(|transaction| *transaction != NOWHERE);
                return Violation::of_cycle(anomaly, beyond, text, history, transactions);
            }
        }
    }
    Violation::of_transactions(Anomaly::G2, "a cycle that was not found again", history, [])
}

/// A shortest cycle of edges of some kinds; if `first` is a kind, with one edge of it more, at the front.
fn shortest(graph: &Graph, whole: &Components, kinds: Kinds, first: Kinds) -> Option<Vec<Edge>> {
    let within = |edge: &Edge| whole.is_on_cycle(edge) && edge.kind.has(kinds);
    let outgoing = Outgoing::of(graph, within);
    let starts: Vec<Edge> = if first.0 != 0 {
        let starts = graph.edges.iter().filter(|edge| whole.is_on_cycle(edge) && edge.kind.has(first));
        starts.copied().collect()
    } else {
        let components = Components::of(graph, &outgoing);
        let starts = graph.edges.iter().filter(|edge| within(edge) && components.is_on_cycle(edge));
        // An inner edge or one of time is on no cycle without another kind of edge, which is told first.
        starts.filter(|edge| edge.kind.has(Kinds::WW | Kinds::WR | Kinds::RW)).copied().collect()
    };
    let mut best: Option<Vec<Edge>> = None;
    let mut came_by = vec![NOWHERE; graph.transaction_of.len()];
    for start in starts.iter().take(STARTS) {
        let most = best.as_ref().map_or(usize::MAX, Vec::len);
        if let Some(cycle) = back_to(graph, &outgoing, *start, &mut came_by)
            && weight(graph, &cycle) < most
        {
            best = Some(cycle);
        }
    }
    best
}

/// Edges of a cycle, without those between moments.
fn weight(graph: &Graph, cycle: &[Edge]) -> usize {
    cycle.iter().filter(|edge| graph.transaction_of[edge.from as usize] != NOWHERE).count()
}

/// The shortest way from the end of an edge to its beginning, behind that edge.
fn back_to(graph: &Graph, outgoing: &Outgoing, start: Edge, came_by: &mut [u32]) -> Option<Vec<Edge>> {
    let (mut queue, mut touched) = (VecDeque::from([start.to]), Vec::new());
    let mut found = false;
    'search: while let Some(node) = queue.pop_front() {
        for edge in outgoing.from(node) {
            let to = graph.edges[*edge as usize].to;
            if came_by[to as usize] == NOWHERE && to != start.to {
                came_by[to as usize] = *edge;
                touched.push(to);
                if to == start.from {
                    found = true;
                    break 'search;
                }
                queue.push_back(to);
            }
        }
    }
    let mut way = Vec::new();
    let mut at = start.from;
    while found && at != start.to {
        let edge = graph.edges[came_by[at as usize] as usize];
        way.push(edge);
        at = edge.from;
    }
    for node in touched {
        came_by[node as usize] = NOWHERE;
    }
    way.push(start);
    way.reverse();
    found.then_some(way)
}

/// A cycle in words. Moments are left out: what leads into them and out of them is one step.
fn tell(graph: &Graph, history: &History, cycle: &[Edge]) -> String {
    let mut text = String::from("a cycle");
    for edge in cycle {
        let [from, to] = [edge.from, edge.to].map(|node| graph.transaction_of[node as usize]);
        let key = edge.key;
        if from != NOWHERE {
            let _ = write!(text, "\n    T{from} ");
        }
        let _ = match edge.kind {
            _ if from == NOWHERE && to == NOWHERE => Ok(()),
            Kinds::REAL_TIME if from == NOWHERE => {
                write!(text, "before T{to} began, at {}", history.transactions[to as usize].begin)
            }
            Kinds::REAL_TIME => {
                write!(text, "had ended, at {}, ", history.transactions[from as usize].end)
            }
            Kinds::SESSION => write!(text, "came before T{to} in its session"),
            Kinds::WW => write!(text, "wrote key {key} before T{to} did"),
            Kinds::WR => write!(text, "wrote what T{to} read under key {key}"),
            Kinds::RW => write!(text, "did not see what T{to} wrote under key {key}"),
            _ => write!(text, "started before it committed"),
        };
    }
    text
}
