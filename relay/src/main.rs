//! `tailrace-relay`: a DERP and STUN server of its own.
#![forbid(unsafe_code)]

use std::fs;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Parser as _;
use relay::admission::VerifyUrl;
use relay::derp_map::Location;
use relay::tls::Identity;
use relay::{Admission, Server, ServerConfig, files, http, net, stun};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

use args::{Cli, Command, Settings};

mod args;

fn main() -> ExitCode {
    let Command::Serve(serve) = Cli::parse().command;
    tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::try_from_env("TAILRACE_LOG").unwrap_or_else(|_| "info".into()))
        .with_writer(std::io::stderr)
        .init();
    let run = || {
        let settings = serve.settings()?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .build()
            .context("cannot start the runtime")?;
        runtime.block_on(run(settings))
    };
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let text = format!("{error:#}").replace('\n', " ");
            eprintln!("tailrace-relay: {text}");
            ExitCode::FAILURE
        }
    }
}

async fn run(settings: Settings) -> anyhow::Result<()> {
    net::raise_file_limit();
    let key = files::load_or_create_key(&settings.state_dir)?;
    let host = settings
        .hostname
        .clone()
        .unwrap_or_else(|| net::reachable_ip(settings.listen.ip()).to_string());
    let identity = match &settings.cert_and_key {
        Some((cert, key)) => Identity::load(cert, key)?,
        None => Identity::self_signed(&settings.state_dir, &host)?,
    };
    let mesh_key = match &settings.mesh_key_file {
        None => None,
        Some(path) => {
            let text = fs::read_to_string(path)
                .with_context(|| format!("cannot read {}", path.display()))?;
            Some(
                text.parse()
                    .with_context(|| format!("{} holds no mesh key", path.display()))?,
            )
        }
    };
    let admission = match &settings.verify_url {
        None => Admission::Open,
        Some(url) => Admission::VerifyUrl(VerifyUrl::new(url)?),
    };
    let derp = net::bind_tcp(settings.listen, "TCP", "--listen").await?;
    let stun = net::bind_udp(settings.stun_listen, "UDP", "--stun-listen").await?;
    let metrics = match settings.metrics {
        None => None,
        Some(address) => Some(net::bind_tcp(address, "TCP", "--metrics").await?),
    };

    let server = Server::new(
        key,
        ServerConfig {
            admission,
            mesh_key,
            ..ServerConfig::default()
        },
    );
    let tls = identity.server_config(&server.public_key())?;
    let location = Location {
        host,
        derp_port: derp.local_addr()?.port(),
        stun_port: Some(stun.local_addr()?.port()),
        cert_name: identity.cert_name(),
    };
    println!(
        "DERP (TLS) on {}, key {}",
        derp.local_addr()?,
        server.public_key()
    );
    println!("STUN on {}", stun.local_addr()?);
    if let Some(listener) = &metrics {
        println!("metrics on http://{}/metrics", listener.local_addr()?);
    }
    println!("certificate {}", identity.pin());
    println!("DERP map for this relay:");
    println!("{:#}", location.derp_map());

    let own = server.metrics().clone();
    let serve_metrics = async {
        match metrics {
            Some(listener) => http::listen_metrics(listener, own).await,
            None => std::future::pending().await,
        }
    };
    let mut terminate = signal(SignalKind::terminate()).context("cannot wait for SIGTERM")?;
    tokio::select! {
        () = http::listen(derp, Some(tls), server.clone()) => {}
        ended = stun::serve(stun, server.metrics()) => ended.context("STUN failed")?,
        () = serve_metrics => {}
        () = server.sweep_forever() => {}
        _ = terminate.recv() => {}
        interrupted = tokio::signal::ctrl_c() => interrupted.context("cannot wait for Ctrl-C")?,
    }
    tracing::info!(clients = server.len(), "stopping");
    server.close_and_wait().await;
    Ok(())
}
