//! Stories of operations. Each is a plain file in `../scripts`: orders and faults, and after `---` what followed. A line of a step
//! says which operation it belongs to, who leads, which step the plan named, and what it changed. A refused order begins with
//! `!`, and its refusal follows. [`Order`] says what each order does to the cluster.
//!
//! After a change of the protocol, `UPDATE_GOLDENFILES=1` writes the stories again; review the diff. Mutated, each seen
//! by ten stories: a vote that goes before the locks do without it, an end before the old epoch is retired, no acknowledgements.

use std::error::Error;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use goldenscript::{Context, Runner};
use quorate_shares::ids::{Epoch, KeyVersion, NodeId};

use super::cluster::{Cluster, STEPS_MAX, invitation, join_with, proof_key};
use super::told::label;
use crate::live::command::{Begin, Change, Invite, Operation, Outcome};
use crate::live::plan::Step;
use crate::tests::fixture::{found, uid};

/// A node by its name, `n1`.
#[derive(Clone, Copy)]
struct Node(NodeId);

impl FromStr for Node {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = text.strip_prefix('n').and_then(|number| number.parse().ok());
        number.map(|number| Self(NodeId(number))).ok_or_else(|| format!("{text} is no node"))
    }
}

#[derive(goldenscript::Command)]
enum Order {
    /// Founds a cluster with this threshold, of which epoch 1 is ACTIVE.
    Found {
        members: u64,
        #[arg(key)]
        threshold: u8,
    },
    /// Makes a key, whose shares are checked by all holders.
    Key(String),
    /// Invites a node.
    Invite(Node),
    /// The node proves its invitation and is there from then on.
    Join(Node),
    /// Invites a node to take the place of a member.
    Replace {
        gone: Node,
        #[arg(key)]
        with: Node,
    },
    /// A member is to leave in good order.
    Remove {
        node: Node,
        #[arg(key, optional)]
        accept_no_redundancy: bool,
    },
    /// Members are to be refused from now on.
    Revoke(Vec<Node>),
    /// Nodes die, or cannot be reached.
    Away(Vec<Node>),
    /// Nodes answer, and do nothing by themselves any more.
    Stuck(Vec<Node>),
    /// Nodes are back, and make their locks what they must be.
    Back(Vec<Node>),
    /// Another node leads, with nothing but what is in its rows.
    Leader(Node),
    /// Leaders deal this many versions at a time from now on.
    Batch(usize),
    /// The leader does the next step, but what it proposes is not applied yet.
    Hold,
    /// What was held is applied.
    Deliver,
    /// This many minutes pass.
    Wait(u64),
    /// The next steps of the plan, one if no number is given.
    Step(Option<usize>),
    /// Steps until nothing is left to do, or no node answers that could do it.
    Run,
    /// Whether these holders' shares of an epoch give the key.
    Open {
        key: String,
        holders: Vec<Node>,
        #[arg(key)]
        epoch: u64,
    },
    /// The whole state. A member holds no piece of its own lock.
    Status,
}

#[derive(Default)]
struct Story {
    cluster: Option<Cluster>,
    keys: Vec<String>,
    orders: u8,
    held: Option<Change>,
}

const NOTHING: &str = "nothing is new";

type Told = Result<String, Box<dyn Error>>;

impl Story {
    fn cluster(&mut self) -> Result<&mut Cluster, &'static str> {
        self.cluster.as_mut().ok_or("no cluster is founded")
    }

    /// Does something, and describes what is new after it.
    fn tell(&mut self, act: impl FnOnce(&mut Cluster) -> Result<(), Box<dyn Error>>) -> Told {
        let cluster = self.cluster()?;
        let before = cluster.seen();
        act(cluster)?;
        let news = cluster.news(&before);
        Ok(if news.is_empty() { NOTHING.to_owned() } else { news })
    }

    fn propose(&mut self, change: Change) -> Told {
        self.tell(|cluster| Ok(cluster.propose(change).map(drop)?))
    }

    fn begin(&mut self, operation: Operation, accept_no_redundancy: bool) -> Told {
        self.orders += 1;
        let (request, abandon) = ([self.orders; 16], Default::default());
        self.propose(Change::Begin(Begin { request, operation, accept_no_redundancy, abandon }))
    }

    fn invite(&mut self, node: NodeId) -> Result<(), Box<dyn Error>> {
        let proof_key = proof_key(node.0 as u8);
        self.cluster()?.propose(Change::Invite(Invite { proof_key, name: None, ttl_ms: 3_600_000 }))?;
        Ok(())
    }

    fn join(&mut self, node: NodeId) -> Told {
        self.tell(|cluster| {
            let joined = cluster.propose(Change::Join(join_with(node.0 as u8, node.0)))?;
            if joined != (Outcome::Registered { node }) {
                return Err(format!("{joined:?}, although it is called n{node}").into());
            }
            cluster.back(node.0);
            Ok(())
        })
    }

    fn create(&mut self, name: &str) -> Told {
        let number = u8::try_from(self.keys.len() + 1)?;
        let told = self.tell(|cluster| {
            for epoch in cluster.make(number, name)? {
                cluster.verify(number, epoch);
            }
            Ok(())
        });
        self.keys.push(name.to_owned());
        told
    }

    /// Takes one step, and returns whether it changed something; `None` if nothing is to be done.
    fn step(&mut self) -> Result<Option<(String, bool)>, Box<dyn Error>> {
        let cluster = self.cluster()?;
        if !cluster.present.contains(&cluster.leader) {
            return Err("no node leads".into());
        }
        let step = cluster.next();
        if step == Step::Nothing {
            return Ok(None);
        }
        let head = Self::head(cluster, &step);
        let (before, name) = (cluster.seen(), label(&step));
        let awaited = super::told::names(&cluster.awaited(&step));
        cluster.take(step).map_err(|refusal| format!("{name} is refused: {refusal}"))?;
        let news = cluster.news(&before);
        let went_on = !news.is_empty();
        Ok(Some((head + &if went_on { news } else { format!("waits for {awaited}") }, went_on)))
    }

    /// The operation that a step belongs to, who leads, and the step.
    fn head(cluster: &Cluster, step: &Step) -> String {
        let running = cluster.state.operations.running.as_ref();
        let number = running.map_or_else(|| "-".to_owned(), |running| running.epoch.to_string());
        format!("{number} n{} {:<19} ", cluster.leader, label(step))
    }

    /// At most so many steps.
    fn steps(&mut self, most: usize) -> Told {
        let mut told = String::new();
        for _ in 0..most {
            let Some((line, went_on)) = self.step()? else {
                writeln!(told, "nothing is left to do")?;
                break;
            };
            writeln!(told, "{line}")?;
            if !went_on {
                break;
            }
        }
        Ok(told)
    }

    fn hold(&mut self) -> Told {
        let cluster = self.cluster()?;
        let step = cluster.next();
        let head = Self::head(cluster, &step);
        let held = match step {
            Step::Propose(change) => change,
            Step::Reshare { epoch, versions, .. } => {
                let dealable = cluster.dealable(&versions);
                cluster.reshared(epoch, &dealable)
            }
            step => return Err(format!("{} proposes nothing", label(&step)).into()),
        };
        self.held = Some(held);
        Ok(head + "is proposed, and not applied yet")
    }

    fn open(&mut self, key: &str, holders: &[Node], epoch: Epoch) -> Told {
        let number = self.keys.iter().position(|known| known == key).ok_or("no such key")? + 1;
        let holders: Vec<_> = holders.iter().map(|node| node.0.0).collect();
        let slot = (uid(u8::try_from(number)?), KeyVersion(1));
        let opened = self.cluster()?.rebuilt(slot, epoch, Some(&holders));
        Ok(if opened.is_some() { "the key" } else { "no key" }.to_owned())
    }
}

impl Runner for Story {
    type Command = Order;

    fn run(&mut self, order: &Order, _: &Context) -> Told {
        match order {
            Order::Found { members, threshold } => {
                let cluster = Cluster::founded(found(*members, *threshold));
                let status = cluster.status();
                *self = Self { cluster: Some(cluster), ..Self::default() };
                Ok(status)
            }
            Order::Key(name) => self.create(name),
            Order::Invite(node) => {
                self.invite(node.0)?;
                Ok(format!("n{} is invited", node.0))
            }
            Order::Join(node) => self.join(node.0),
            Order::Replace { gone, with } => {
                self.invite(with.0)?;
                let invitation = invitation(with.0.0 as u8);
                self.cluster()?.propose(Change::Replace { invitation, gone: gone.0 })?;
                Ok(format!("n{} is invited in the place of n{}", with.0, gone.0))
            }
            Order::Remove { node, accept_no_redundancy } => {
                self.begin(Operation::Remove { node: node.0 }, *accept_no_redundancy)
            }
            Order::Revoke(nodes) => {
                let nodes = nodes.iter().map(|node| node.0).collect();
                self.begin(Operation::Revoke { nodes }, false)
            }
            Order::Away(nodes) => self.tell(|cluster| {
                nodes.iter().for_each(|node| cluster.away(node.0.0));
                Ok(())
            }),
            Order::Stuck(nodes) => {
                let cluster = self.cluster()?;
                nodes.iter().for_each(|node| cluster.stuck(node.0.0));
                Ok(format!("nothing but answers from {}", super::told::names(nodes.iter().map(|node| &node.0))))
            }
            Order::Back(nodes) => self.tell(|cluster| {
                for Node(node) in nodes {
                    if cluster.denied.contains(node) {
                        return Err(format!("n{node} is denied").into());
                    }
                    cluster.back(node.0);
                    cluster.report_lock(*node);
                }
                Ok(())
            }),
            Order::Leader(node) => self.tell(|cluster| {
                if !cluster.present.contains(&node.0) {
                    return Err(format!("n{} is away", node.0).into());
                }
                cluster.lead(node.0);
                Ok(())
            }),
            Order::Batch(most) => {
                self.cluster()?.batch = *most;
                Ok(format!("{most} versions at a time"))
            }
            Order::Hold => self.hold(),
            Order::Deliver => {
                let held = self.held.take().ok_or("nothing is held")?;
                self.propose(held)
            }
            Order::Wait(minutes) => {
                let told = self.tell(|cluster| {
                    cluster.wait(minutes * 60_000);
                    Ok(())
                })?;
                Ok(if told == NOTHING {
                    format!("{minutes} min later")
                } else {
                    format!("{minutes} min later; {told}")
                })
            }
            Order::Step(most) => self.steps(most.unwrap_or(1)),
            Order::Run => self.steps(STEPS_MAX),
            Order::Open { key, holders, epoch } => self.open(key, holders, Epoch(*epoch)),
            Order::Status => Ok(self.cluster()?.status()),
        }
    }
}

fn scripts() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src/tests/scripts")
}

macro_rules! stories {
    ($($name:ident)*) => {
        $(#[test]
        fn $name() {
            goldenscript::run(&mut Story::default(), scripts().join(stringify!($name))).expect("a story to its end");
        })*

        #[test]
        fn every_script_is_told() {
            let files = scripts().read_dir().expect("the scripts");
            let mut files: Vec<_> = files.map(|file| file.expect("a file").file_name()).collect();
            files.sort();
            assert_eq!(files, [$(stringify!($name)),*]);
        }
    };
}

stories! {
    away_and_back
    join
    leader_crash_in_deal
    remove
    replace
    revoke
    revoke_after_join
    revoke_during_join
    revoke_takes_over_remove
    silent_joiner
    stuck_member
    two_orders_at_once
}
