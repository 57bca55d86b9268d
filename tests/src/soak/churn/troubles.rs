//! What happens while an order is carried out.

use std::fmt;
use std::time::{Duration, Instant};

use quorate_testnet::faults::network::LinkQuality;
use quorate_testnet::procs::Tool;

use super::orders::Order;
use super::{Churn, HEALING};

/// The longest before it begins, after the order.
const SOON_MS: usize = 1_500;
/// The longest that a node is down, cut off, or stopped.
const LONG_MS: usize = 4_000;
/// A node that was away before the order comes back so long after it, unless the order is done earlier.
const AWAY: Duration = Duration::from_secs(6);
/// Exit codes of the command line: try again, no such node, not now, Ctrl-C.
const NO_QUORUM: i32 = 3;
const NOT_FOUND: i32 = 5;
const CONFLICT: i32 = 6;
const INTERRUPTED: i32 = 130;

/// What happens, and the node that it happens to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Trouble {
    None,
    /// A node is killed and starts again.
    Death(String),
    /// A node is killed again and again.
    Deaths(String),
    /// All are killed and start again.
    Outage,
    /// A node is cut off from the others.
    Cut(String),
    /// It hears the others, and they do not hear it, or the other way round.
    OneWay(String),
    /// Datagrams are lost, doubled and overtaken.
    BadNetwork,
    /// A process stands still.
    Stop(String),
    /// A member is down from before the order until after it.
    Away(String),
    /// A second operator orders something else at the same time.
    Second(Order),
    /// The same is typed twice.
    Twice,
    /// Ctrl-C, and typed again.
    Interrupt,
    /// The joiner never comes back.
    Desertion(String),
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("no trouble"),
            Self::Death(node) => write!(f, "{node} dies"),
            Self::Deaths(node) => write!(f, "{node} dies again and again"),
            Self::Outage => f.write_str("all die"),
            Self::Cut(node) => write!(f, "{node} is cut off"),
            Self::OneWay(node) => write!(f, "{node} is cut off one way"),
            Self::BadNetwork => f.write_str("a bad network"),
            Self::Stop(node) => write!(f, "{node} stands still"),
            Self::Away(node) => write!(f, "{node} is away"),
            Self::Second(order) => write!(f, "and at the same time: {order}"),
            Self::Twice => f.write_str("typed twice"),
            Self::Interrupt => f.write_str("Ctrl-C, and typed again"),
            Self::Desertion(node) => write!(f, "{node} never comes back"),
        }
    }
}

impl Churn {
    pub(super) fn draw_trouble(&mut self, order: &Order) -> Trouble {
        let victim = self.draw_victim(order);
        match self.dice.below(16) {
            0 => Trouble::None,
            1..=3 => Trouble::Death(victim),
            4 => Trouble::Deaths(victim),
            5 => Trouble::Outage,
            6 | 7 => Trouble::Cut(victim),
            8 => Trouble::OneWay(victim),
            9 => Trouble::BadNetwork,
            10 => Trouble::Stop(victim),
            // Of two members neither can be away when anything is ordered.
            11 | 12 if self.members.len() > 2 => Trouble::Away(self.pick(&self.members.clone())),
            13 => Trouble::Second(self.draw_order()),
            14 if order.joiner().is_none() => Trouble::Twice,
            15 if order.joiner().is_none() => Trouble::Interrupt,
            _ => match order.joiner() {
                Some(joiner) => Trouble::Desertion(joiner.to_owned()),
                None => Trouble::Death(victim),
            },
        }
    }

    /// The leader, a node of the order, or any member.
    fn draw_victim(&mut self, order: &Order) -> String {
        let anybody = self.pick(&self.members.clone());
        let about: Vec<&str> = order.leaving().into_iter().chain(order.joiner()).collect();
        match self.dice.below(3) {
            0 => self.status.leader.as_ref().map_or(anybody, ToString::to_string),
            1 => about[self.dice.below(about.len())].to_owned(),
            _ => anybody,
        }
    }

    /// Gives the order, makes the trouble, and ends it. Returns whether the command says that it is done.
    pub(super) fn carry_out(&mut self, order: &Order, trouble: &Trouble) -> bool {
        self.begin(trouble);
        let command = self.give(order);
        self.nap(SOON_MS);
        self.steal_sometimes();
        let second = self.strike(order, trouble, &command);
        self.steal_sometimes();
        let done = self.see_through(order, trouble, command);
        if let Some(second) = second {
            let finished = second.outcome(HEALING).expect("it ends");
            println!("  `{}` ended with {:?}", finished.line, finished.code);
        }
        self.end(trouble);
        done
    }

    /// What is there before the order.
    fn begin(&mut self, trouble: &Trouble) {
        match trouble {
            Trouble::Away(node) => {
                self.cluster.testnet.kill(node).expect("dies");
                self.cluster.until("the others to go on", || self.quorum_status());
            }
            Trouble::BadNetwork => {
                let delay = Duration::ZERO..=Duration::from_millis(self.dice.below(40) as u64);
                let quality = LinkQuality { loss: 0.03, duplicate: 0.1, delay };
                let seed = self.dice.below(usize::MAX) as u64;
                self.cluster.faults().set_quality(quality, seed);
            }
            _ => {}
        }
    }

    /// What begins during it. It is over when this returns; only a second command may still run.
    fn strike(&mut self, order: &Order, trouble: &Trouble, command: &Tool) -> Option<Tool> {
        match trouble {
            Trouble::Death(node) => self.die(node, LONG_MS),
            Trouble::Deaths(node) => (0..4).for_each(|_| {
                self.die(node, LONG_MS / 8);
                self.nap(SOON_MS);
            }),
            Trouble::Outage => self.outage(order),
            Trouble::Cut(node) => {
                self.cluster.testnet.cut(node).expect("a node");
                self.nap(LONG_MS);
                self.cluster.testnet.heal().expect("heals");
            }
            Trouble::OneWay(node) => self.cut_one_way(node),
            Trouble::Stop(node) => {
                let process = self.cluster.testnet.process(node).expect("a node");
                // A joiner that gave up is gone.
                let stopped = process.is_some_and(|process| process.pause().is_ok());
                self.nap(LONG_MS);
                let process = self.cluster.testnet.process(node).expect("a node").filter(|_| stopped);
                process.into_iter().for_each(|process| process.resume().expect("goes on"));
            }
            Trouble::Second(order) => {
                let taken = |joiner| self.cluster.testnet.is_running(joiner).is_ok_and(|runs| runs);
                let free = !order.joiner().is_some_and(taken);
                let second = free.then(|| self.try_to_give(order))?;
                return second.inspect_err(|error| println!("  {error}")).ok();
            }
            Trouble::Twice => return self.give_again(order),
            Trouble::Interrupt => {
                // It may have ended.
                let _ = command.interrupt();
            }
            Trouble::Desertion(node) => self.cluster.testnet.kill(node).expect("dies"),
            Trouble::None | Trouble::BadNetwork | Trouble::Away(_) => {}
        }
        None
    }

    fn die(&mut self, node: &str, down_ms: usize) {
        self.cluster.testnet.kill(node).expect("dies");
        self.nap(down_ms);
        self.start(node);
    }

    /// Starts a node. One that is not wanted any more may end at once.
    pub(super) fn start(&mut self, node: &str) {
        match self.cluster.testnet.start(node) {
            Ok(()) => {}
            Err(quorate_testnet::Error::Ended { .. }) => println!("  {node} does not stay up"),
            Err(error) => panic!("{node}: {error}"),
        }
    }

    fn outage(&mut self, order: &Order) {
        let all: Vec<String> =
            self.members.iter().map(String::as_str).chain(order.joiner()).map(str::to_owned).collect();
        all.iter().for_each(|node| self.cluster.testnet.kill(node).expect("dies"));
        self.nap(LONG_MS / 2);
        let first = self.dice.below(all.len());
        for node in all.iter().cycle().skip(first).take(all.len()) {
            self.start(node);
        }
    }

    fn cut_one_way(&mut self, node: &str) {
        let deaf = self.dice.below(2) == 0;
        for other in self.members.iter().filter(|other| *other != node) {
            let (from, to) = if deaf { (other.as_str(), node) } else { (node, other.as_str()) };
            self.cluster.faults().cut_one_way(from, to).expect("nodes");
        }
        self.nap(LONG_MS);
        self.cluster.testnet.heal().expect("heals");
    }

    /// Waits for the command, and repeats it if it says so. Nodes that are away come back meanwhile.
    fn see_through(&mut self, order: &Order, trouble: &Trouble, command: Tool) -> bool {
        let mut command = command;
        let begin = Instant::now();
        loop {
            let ended = quorate_testnet::wait_until(format!("{order} to end"), HEALING, || {
                if let Trouble::Away(node) = trouble
                    && begin.elapsed() > AWAY
                {
                    self.start(node);
                }
                command.has_ended().then_some(())
            });
            ended.unwrap_or_else(|error| panic!("{error}: {}", command.so_far()));
            let finished = command.outcome(HEALING).expect("it has ended");
            let said = || finished.stderr.lines().last().unwrap_or_default().to_owned();
            match finished.code {
                Some(0) => return true,
                // The order before was heard, although its answer was lost.
                Some(NOT_FOUND) if finished.stderr.contains("already") => return true,
                Some(CONFLICT) => {
                    println!("  refused: {}", said());
                    assert!(*trouble != Trouble::None, "{order}: {}", finished.stderr);
                    return false;
                }
                code => {
                    println!("  {order} ended with {code:?}: {}", said());
                    let late = finished.stderr.contains("no answer in time");
                    // Ctrl-C may come before a command listens for it, which it does before it begins anything.
                    let at_once = *trouble == Trouble::Interrupt && finished.was_cut_short();
                    let stopped = code == Some(INTERRUPTED) || at_once;
                    let expected = late || stopped || code == Some(NO_QUORUM) || order.joiner().is_some();
                    assert!(expected && *trouble != Trouble::None, "{order}: {code:?}: {}", finished.stderr);
                }
            }
            match self.give_again(order) {
                Some(again) => command = again,
                None => return false,
            }
            assert!(begin.elapsed() < HEALING, "{order} fails again and again: {}", finished.stderr);
        }
    }

    /// Ends the trouble. A node that was killed is started again, unless it is gone for good.
    fn end(&mut self, trouble: &Trouble) {
        self.cluster.testnet.heal().expect("heals");
        self.cluster.faults().set_quality(LinkQuality::default(), 0);
        for node in self.members.clone() {
            self.start(&node);
        }
        if let Trouble::Desertion(node) = trouble {
            println!("  {node} is gone");
        }
    }
}
