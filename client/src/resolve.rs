//! Names to addresses, without waiting for the resolver of the system longer than one wants to.
//!
//! The resolver of the system blocks its thread, for ten seconds and more if a name server is silent. The runtime of Tokio
//! runs it on a thread that the runtime waits for at its end. So a command would wait for a name that it needs no more, and
//! a daemon would not stop. Here it runs on threads that nothing waits for: the process ends with them.
//!
//! A name is resolved at each [`lookup`], because names move. While that takes its time, the addresses that the name had
//! before are known at once. An address may be wrong or old: the one who dials it requires the key of the node.

use std::collections::BTreeMap;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::{Arc, LazyLock};

use parking_lot::Mutex;
use tokio::sync::watch;

/// Names that are being resolved at one time at most, each on a thread of its own. A further name counts as not resolved.
const LOOKUPS_MAX: usize = 128;
/// Names whose last addresses are remembered at most. Those of a further name are not.
const REMEMBERED_MAX: usize = 256;

/// The addresses of a name, or why there are none.
pub type Resolved = Result<Vec<SocketAddr>, String>;

/// What is known about a text `host:port`.
pub struct Lookup {
    /// The address that the text is, or the addresses that the name had when it was last resolved.
    pub known: Vec<SocketAddr>,
    /// The addresses of the name now. `None` for a text that is an address.
    pub fresh: Option<Fresh>,
}

/// A name that is being resolved. Dropping it waits for nothing.
pub struct Fresh(watch::Receiver<Option<Resolved>>);

impl Fresh {
    /// A name whose resolution the test decides.
    #[cfg(test)]
    pub(crate) fn of(told: watch::Receiver<Option<Resolved>>) -> Self {
        Self(told)
    }

    /// Waits until the name is resolved.
    ///
    /// # Errors
    /// What the resolver says.
    pub async fn addresses(mut self) -> Resolved {
        match self.0.wait_for(Option::is_some).await {
            Ok(resolved) => resolved.clone().unwrap_or_else(|| Err(ENDED.to_owned())),
            Err(_) => Err(ENDED.to_owned()),
        }
    }
}

const ENDED: &str = "the resolver ended without an answer";

/// Looks up a text `host:port`. It returns at once.
pub fn lookup(text: &str) -> Lookup {
    SYSTEM.lookup(text)
}

static SYSTEM: LazyLock<Resolver> = LazyLock::new(|| Resolver::new(|text| Ok(text.to_socket_addrs()?.collect())));

type Resolve = dyn Fn(&str) -> io::Result<Vec<SocketAddr>> + Send + Sync;

struct Resolver {
    names: Arc<Mutex<Names>>,
    resolve: Arc<Resolve>,
}

#[derive(Default)]
struct Names {
    /// The names that are being resolved. All who ask for one of them meanwhile get the same answer.
    running: BTreeMap<String, watch::Receiver<Option<Resolved>>>,
    /// The addresses that each name had last.
    last: BTreeMap<String, Vec<SocketAddr>>,
}

impl Names {
    fn ended(&mut self, name: &str, resolved: &Resolved) {
        self.running.remove(name);
        if let Ok(addresses) = resolved
            && !addresses.is_empty()
            && (self.last.len() < REMEMBERED_MAX || self.last.contains_key(name))
        {
            self.last.insert(name.to_owned(), addresses.clone());
        }
    }
}

impl Resolver {
    fn new(resolve: impl Fn(&str) -> io::Result<Vec<SocketAddr>> + Send + Sync + 'static) -> Self {
        Self { names: Arc::default(), resolve: Arc::new(resolve) }
    }

    fn lookup(&self, text: &str) -> Lookup {
        if let Ok(address) = text.parse() {
            return Lookup { known: vec![address], fresh: None };
        }
        let mut names = self.names.lock();
        let known = names.last.get(text).cloned().unwrap_or_default();
        if let Some(running) = names.running.get(text) {
            return Lookup { known, fresh: Some(Fresh(running.clone())) };
        }
        let (tell, told) = watch::channel(None);
        if names.running.len() >= LOOKUPS_MAX {
            tell.send_replace(Some(Err(format!("{LOOKUPS_MAX} other names are being resolved"))));
            return Lookup { known, fresh: Some(Fresh(told)) };
        }
        names.running.insert(text.to_owned(), told.clone());
        let (all, resolve, name) = (Arc::clone(&self.names), Arc::clone(&self.resolve), text.to_owned());
        let resolving = move || {
            let resolved = resolve(&name).map_err(|error| error.to_string());
            all.lock().ended(&name, &resolved);
            tell.send_replace(Some(resolved));
        };
        if let Err(error) = std::thread::Builder::new().name("resolver".to_owned()).spawn(resolving) {
            let resolved = Err(format!("cannot start a thread: {error}"));
            names.ended(text, &resolved);
            return Lookup { known, fresh: Some(Fresh(watch::channel(Some(resolved)).1)) };
        }
        Lookup { known, fresh: Some(Fresh(told)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc;
    use std::time::Duration;

    fn address(port: u16) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], port))
    }

    /// A resolver that answers when the test says so.
    fn on_command() -> (Resolver, mpsc::Sender<Vec<SocketAddr>>, Arc<AtomicUsize>) {
        let (answer, answers) = mpsc::channel::<Vec<SocketAddr>>();
        let (answers, asked) = (Mutex::new(answers), Arc::new(AtomicUsize::new(0)));
        let count = Arc::clone(&asked);
        let resolver = Resolver::new(move |_| {
            count.fetch_add(1, Ordering::SeqCst);
            answers.lock().recv().map_err(|_| io::Error::other("the test is over"))
        });
        (resolver, answer, asked)
    }

    #[tokio::test]
    async fn a_name_is_resolved_each_time_and_what_it_was_is_known_meanwhile() {
        let (resolver, answer, asked) = on_command();
        let first = resolver.lookup("n1.example:7250");
        assert_eq!(first.known, []);
        answer.send(vec![address(1)]).expect("it waits");
        assert_eq!(first.fresh.expect("a name").addresses().await, Ok(vec![address(1)]));
        let moved = resolver.lookup("n1.example:7250");
        assert_eq!(moved.known, [address(1)]);
        let same = resolver.lookup("n1.example:7250");
        answer.send(vec![address(2)]).expect("it waits");
        for lookup in [moved, same] {
            assert_eq!(lookup.fresh.expect("a name").addresses().await, Ok(vec![address(2)]));
        }
        assert_eq!(asked.load(Ordering::SeqCst), 2, "two that ask at one time share one thread");
        let literal = resolver.lookup("127.0.0.1:3");
        assert!(literal.known == [address(3)] && literal.fresh.is_none(), "an address needs no resolver");
    }

    #[tokio::test]
    async fn names_that_hang_are_bounded() {
        let (resolver, answer, _) = on_command();
        let hanging: Vec<_> = (0..LOOKUPS_MAX).map(|number| resolver.lookup(&format!("n{number}:1"))).collect();
        let further = resolver.lookup("further:1").fresh.expect("a name").addresses().await;
        assert!(further.expect_err("too many").contains("other names"));
        drop(answer);
        for lookup in hanging {
            assert!(lookup.fresh.expect("a name").addresses().await.is_err());
        }
        assert!(resolver.names.lock().running.is_empty());
    }

    /// Mutated: with a lookup on a thread of the runtime, the runtime ends when the resolver does.
    #[test]
    fn the_end_of_a_runtime_waits_for_no_name() {
        let (resolver, answer, asked) = on_command();
        let (tell, ended) = mpsc::channel();
        let waits = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async {
                let fresh = resolver.lookup("n1.example:7250").fresh.expect("a name").addresses();
                tokio::select! { resolved = fresh => panic!("{resolved:?}"), () = seen(&asked) => {} }
            });
            drop(runtime);
            tell.send(()).expect("the test waits");
        });
        ended.recv_timeout(Duration::from_secs(20)).expect("the runtime has ended while the resolver hangs");
        drop(answer);
        waits.join().expect("no panic");
    }

    async fn seen(asked: &AtomicUsize) {
        while asked.load(Ordering::SeqCst) == 0 {
            tokio::task::yield_now().await;
        }
    }
}
