//! The arena: one piece of memory for secrets that is never swapped and never dumped. Where the kernel supports it, the
//! memory is not even mapped for the kernel itself. This is the only module with system calls and `unsafe`.
//!
//! The arena is cut into slots of 64 bytes. A [`crate::secret::Secret`] takes a slot when it is made. When it is
//! dropped, it wipes the slot and returns it. If all slots are taken, or the system grants no locked memory, secrets
//! live on the heap and are still wiped; [`status`] shows it, and the daemon warns. The arena never refuses to work for
//! that reason.
//!
//! It does not keep secrets out of registers, or out of the working memory of the libraries that compute on them.

use std::io;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

use zeroize::Zeroize;

/// Size of a slot in bytes. A larger secret lives on the heap.
pub const SLOT_BYTES: usize = 64;
/// Numbers of slots that are requested, one after the other: 1 MiB first, then 32 KiB if the system does not lock that
/// much.
const SLOTS: [usize; 2] = [16_384, 512];

/// The memory that is requested from the system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SecretMemory {
    /// memfd_secret(2): pages that neither another process nor the kernel has mapped. Falls back to `Mlock`.
    MemfdSecret,
    /// mlock(2): pages that are never swapped and stay out of core dumps.
    Mlock,
}

/// The memory that the system granted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backing {
    /// Pages of memfd_secret(2): see [`SecretMemory::MemfdSecret`].
    MemfdSecret,
    /// Pages of mlock(2): see [`SecretMemory::Mlock`].
    Mlock,
    /// No locked memory: secrets live on the heap and may be swapped out.
    Heap,
}

/// The state of the arena, for warnings and metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Status {
    /// The memory that holds the slots.
    pub backing: Backing,
    /// Number of slots.
    pub slots: usize,
    /// Number of slots in use.
    pub used: usize,
    /// Number of secrets since the start that found no free slot and went to the heap.
    pub spilled: u64,
}

/// Makes the arena from `wanted`. If a secret exists already, the arena was made from [`SecretMemory::MemfdSecret`] and
/// stays as it is.
///
/// Call it once, early in `main`. [`Status::backing`] of the result says what the system granted.
pub fn prepare(wanted: SecretMemory) -> Status {
    ARENA.get_or_init(|| Arena::new(wanted));
    status()
}

/// The state of the arena now.
pub fn status() -> Status {
    let arena = arena();
    let used = arena.slots - arena.free.lock().unwrap_or_else(PoisonError::into_inner).len();
    Status { backing: arena.backing, slots: arena.slots, used, spilled: arena.spilled.load(Ordering::Relaxed) }
}

/// Forbids core dumps of this process, and forbids other processes to trace it or to read its memory.
///
/// # Errors
/// The error of prctl(2) or setrlimit(2).
pub fn harden_process() -> io::Result<()> {
    let no_core = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: both calls read their arguments only; the pointer is to a live local.
    let failed =
        unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0) != 0 || libc::setrlimit(libc::RLIMIT_CORE, &no_core) != 0 };
    match failed {
        true => Err(io::Error::last_os_error()),
        false => Ok(()),
    }
}

/// `N` bytes with one owner: zero at first, and wiped when dropped.
pub(crate) enum Buffer<const N: usize> {
    /// In a slot of the arena.
    ArenaSlot(ArenaSlot),
    /// On the heap.
    Heap(Box<[u8; N]>),
}

impl<const N: usize> Buffer<N> {
    pub(crate) fn zero() -> Self {
        match ArenaSlot::take(N) {
            Some(slot) => Self::ArenaSlot(slot),
            None => Self::Heap(Box::new([0; N])),
        }
    }

    pub(crate) fn bytes(&self) -> &[u8; N] {
        match self {
            // SAFETY: `ArenaSlot::take` gave a slot only because N <= SLOT_BYTES, the memory of a slot is initialised and
            // mapped for ever, and this buffer owns the slot alone: a shared borrow of it is a shared borrow of the
            // bytes.
            Self::ArenaSlot(slot) => unsafe { slot.start.cast::<[u8; N]>().as_ref() },
            Self::Heap(bytes) => bytes,
        }
    }

    pub(crate) fn bytes_mut(&mut self) -> &mut [u8; N] {
        match self {
            // SAFETY: as above, with an exclusive borrow.
            Self::ArenaSlot(slot) => unsafe { slot.start.cast::<[u8; N]>().as_mut() },
            Self::Heap(bytes) => bytes,
        }
    }
}

impl<const N: usize> Drop for Buffer<N> {
    fn drop(&mut self) {
        self.bytes_mut().zeroize();
    }
}

/// The right to one slot of the arena.
pub(crate) struct ArenaSlot {
    start: NonNull<u8>,
}

// SAFETY: a slot is owned by one value, like a Box, and the memory behind it is never unmapped.
unsafe impl Send for ArenaSlot {}
// SAFETY: through a shared `ArenaSlot` the bytes can only be read.
unsafe impl Sync for ArenaSlot {}

impl ArenaSlot {
    fn take(len: usize) -> Option<Self> {
        if len > SLOT_BYTES {
            return None;
        }
        let arena = arena();
        let slot = arena.free.lock().unwrap_or_else(PoisonError::into_inner).pop();
        if slot.is_none() {
            arena.spilled.fetch_add(1, Ordering::Relaxed);
        }
        slot
    }
}

/// Returns the slot. The bytes are wiped already: `Buffer` wipes them in its own drop, before its field is dropped.
impl Drop for ArenaSlot {
    fn drop(&mut self) {
        let returned = ArenaSlot { start: self.start };
        let mut free = arena().free.lock().unwrap_or_else(PoisonError::into_inner);
        free.push(returned);
    }
}

struct Arena {
    backing: Backing,
    slots: usize,
    free: Mutex<Vec<ArenaSlot>>,
    spilled: AtomicU64,
}

static ARENA: OnceLock<Arena> = OnceLock::new();

fn arena() -> &'static Arena {
    ARENA.get_or_init(|| Arena::new(SecretMemory::MemfdSecret))
}

impl Arena {
    fn new(wanted: SecretMemory) -> Self {
        let backings: &[Backing] = match wanted {
            SecretMemory::MemfdSecret => &[Backing::MemfdSecret, Backing::Mlock],
            SecretMemory::Mlock => &[Backing::Mlock],
        };
        let candidates = backings.iter().flat_map(|backing| SLOTS.map(|slots| (*backing, slots)));
        for (backing, slots) in candidates {
            let mapped = match backing {
                Backing::MemfdSecret => map_memfd_secret(slots * SLOT_BYTES),
                Backing::Mlock | Backing::Heap => map_locked(slots * SLOT_BYTES),
            };
            if let Some(base) = mapped {
                // SAFETY: the mapping is ours alone and this long. Writing it now finds missing memory now.
                unsafe { base.write_bytes(0, slots * SLOT_BYTES) };
                // SAFETY: slot < slots, so the offset stays inside the mapping.
                let start = |slot: usize| unsafe { base.add(slot * SLOT_BYTES) };
                let free = (0..slots).map(|slot| ArenaSlot { start: start(slot) }).collect();
                return Self { backing, slots, free: Mutex::new(free), spilled: AtomicU64::new(0) };
            }
        }
        Self { backing: Backing::Heap, slots: 0, free: Mutex::new(Vec::new()), spilled: AtomicU64::new(0) }
    }
}

fn map_memfd_secret(bytes: usize) -> Option<NonNull<u8>> {
    let length = libc::off_t::try_from(bytes).ok()?;
    // SAFETY: a system call without pointers; it returns a new descriptor or -1.
    let fd = unsafe { libc::syscall(libc::SYS_memfd_secret, libc::O_CLOEXEC) };
    let fd = libc::c_int::try_from(fd).ok().filter(|fd| *fd >= 0)?;
    // SAFETY: the descriptor is ours and open; the mapping survives its closing.
    unsafe {
        let mapped = match libc::ftruncate(fd, length) {
            0 => map(bytes, libc::MAP_SHARED, fd),
            _ => None,
        };
        libc::close(fd);
        mapped
    }
}

fn map_locked(bytes: usize) -> Option<NonNull<u8>> {
    let base = map(bytes, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1)?;
    // SAFETY: the range is the mapping that was just made, and nothing uses it yet.
    unsafe {
        let start = base.as_ptr().cast();
        if libc::mlock(start, bytes) != 0 || libc::madvise(start, bytes, libc::MADV_DONTDUMP) != 0 {
            libc::munmap(start, bytes);
            return None;
        }
    }
    Some(base)
}

fn map(bytes: usize, flags: libc::c_int, fd: libc::c_int) -> Option<NonNull<u8>> {
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: a new mapping at a place of the kernel's choice touches no memory that exists.
    let start = unsafe { libc::mmap(std::ptr::null_mut(), bytes, protection, flags, fd, 0) };
    match start {
        libc::MAP_FAILED => None,
        start => NonNull::new(start.cast()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_is_wiped_before_it_is_used_again() {
        // More buffers than the other tests can hold at the same time.
        for _ in 0..1000 {
            let mut buffer = Buffer::<32>::zero();
            assert_eq!(*buffer.bytes(), [0; 32]);
            buffer.bytes_mut().fill(0xa5);
        }
    }

    #[test]
    fn secrets_live_in_locked_memory_and_large_ones_on_the_heap() {
        let small = Buffer::<64>::zero();
        let large = Buffer::<65>::zero();
        assert!(matches!(large, Buffer::Heap(_)));
        match status() {
            Status { backing: Backing::Heap, .. } => assert!(matches!(small, Buffer::Heap(_))),
            Status { used, .. } => assert!(used >= 1 && matches!(small, Buffer::ArenaSlot(_))),
        }
    }

    #[test]
    fn two_buffers_never_share_bytes() {
        let mut buffers: Vec<Buffer<16>> = (0..600).map(|_| Buffer::zero()).collect();
        for (i, buffer) in buffers.iter_mut().enumerate() {
            buffer.bytes_mut().fill(i as u8);
        }
        assert!(buffers.iter().enumerate().all(|(i, buffer)| *buffer.bytes() == [i as u8; 16]));
    }
}
