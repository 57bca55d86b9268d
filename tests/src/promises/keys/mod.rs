//! What holds for keys and for what was encrypted under them.

mod ciphertexts;
mod durability;
mod hot_path;
mod ready;
