//! What reaches what in an acyclic graph.
//!
//! The transactions of a session that took effect come one after the other, so what reaches a node is one number for each session:
//! the last of its transactions that does. That is a vector clock, and costs one number per node and session.

use std::collections::HashMap;

use super::cycle::{Components, Outgoing};
use super::graph::{Graph, NOWHERE};
use super::history::History;

/// Places of transactions among those of their session that took effect: from 1, in their order.
#[derive(Debug)]
pub(super) struct Places {
    pub(super) sessions: usize,
    /// The session, from 0.
    pub(super) session: Vec<u32>,
    /// The place; 0 if the transaction did not take effect.
    pub(super) place: Vec<u32>,
}

impl Places {
    pub(super) fn of(history: &History, graph: &Graph) -> Places {
        let mut numbers = HashMap::new();
        let mut counts: Vec<u32> = Vec::new();
        let (mut session, mut place) = (Vec::new(), Vec::new());
        for (index, transaction) in history.transactions.iter().enumerate() {
            let number = *numbers.entry(transaction.session).or_insert(counts.len());
            if number == counts.len() {
                counts.push(0);
            }
            let effective = graph.commit[index] != NOWHERE;
            counts[number] += u32::from(effective);
            session.push(number as u32);
            place.push(if effective { counts[number] } else { 0 });
        }
        Places { sessions: counts.len(), session, place }
    }
}

/// The clocks of all nodes.
#[derive(Debug)]
pub(super) struct Clocks {
    sessions: usize,
    clocks: Vec<u32>,
}

impl Clocks {
    /// The graph must be acyclic.
    pub(super) fn of(graph: &Graph, outgoing: &Outgoing, components: &Components, places: &Places) -> Clocks {
        let (nodes, sessions) = (graph.transaction_of.len(), places.sessions);
        let mut order = vec![0; nodes];
        for (node, component) in components.of.iter().enumerate() {
            order[nodes - 1 - *component as usize] = node as u32;
        }
        let mut clocks = vec![0; nodes * sessions];
        let mut own = vec![0; sessions];
        for node in order {
            let at = node as usize * sessions;
            let transaction = graph.transaction_of[node as usize];
            if transaction != NOWHERE && graph.commit[transaction as usize] == node {
                let session = places.session[transaction as usize] as usize;
                clocks[at + session] = clocks[at + session].max(places.place[transaction as usize]);
            }
            own.copy_from_slice(&clocks[at..at + sessions]);
            for edge in outgoing.from(node) {
                let to = graph.edges[*edge as usize].to as usize * sessions;
                for (theirs, ours) in clocks[to..to + sessions].iter_mut().zip(&own) {
                    *theirs = (*theirs).max(*ours);
                }
            }
        }
        Clocks { sessions, clocks }
    }

    /// For each session, the place of the last transaction whose commit is this node or comes before it.
    pub(super) fn at(&self, node: u32) -> &[u32] {
        &self.clocks[node as usize * self.sessions..][..self.sessions]
    }
}
