//! Encrypts a line and decrypts it again: `encrypt CLUSTER.toml TOKEN-FILE KEY`.

use std::error::Error;
use std::path::Path;

use quorate_client::{Client, ClusterFile, Context, Credential, KeyName, Options};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [cluster, token, key] = &arguments[..] else {
        return Err("usage: encrypt CLUSTER.toml TOKEN-FILE KEY".into());
    };
    let cluster = ClusterFile::read(Path::new(cluster))?;
    let credential = Credential::parse(&std::fs::read_to_string(token)?)?;
    let key: KeyName = key.parse()?;
    let client = Client::connect(cluster, &credential, Options::default()).await?;

    // To decrypt, a caller must give the same context: here, that this example made the message.
    let context = Context::new([("made-by", "example")])?;
    let ciphertext = client.encrypt(&key, &context, b"attack at dawn").await?;
    let plaintext = client.decrypt(&ciphertext, &context).await?;
    assert_eq!(plaintext.expose(), b"attack at dawn");
    let out = std::io::stdout();
    std::io::Write::write_all(&mut out.lock(), format!("{ciphertext}\n").as_bytes())?;
    client.close().await;
    Ok(())
}
