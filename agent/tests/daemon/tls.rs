//! A coordination server behind TLS.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use testnet::{Folder, Lab};

use super::node::Node;
use super::server::{Options, Server};

#[test]
fn a_certificate_of_a_trusted_authority_is_enough() -> Result<()> {
    testnet::skip_unless_available!();
    let mut lab = Lab::new()?;
    let host = lab.server("trusted")?;
    let folder = Folder::new("tls")?;
    let files = certificates(folder.path(), &host.address().to_string())?;
    let server = Server::start(&host, files.served())?;
    let node = Node::start_as(&host, "tailrace0", 41641, files.trusted())?;
    node.cli(&format!("up --login-server {}", server.url()))?;
    node.wait_state("Running")?;
    Ok(())
}

#[test]
fn a_certificate_that_nobody_vouches_for_is_refused_with_the_fix() -> Result<()> {
    testnet::skip_unless_available!();
    let mut lab = Lab::new()?;
    let host = lab.server("stranger")?;
    let folder = Folder::new("tls")?;
    let files = certificates(folder.path(), &host.address().to_string())?;
    let server = Server::start(&host, files.served())?;
    let node = Node::start(&host)?;

    let line = node.refused(&format!("up --login-server {}", server.url()))?;

    for word in [&server.url(), "does not trust", "SSL_CERT_FILE"] {
        ensure!(line.contains(word), "no {word} in {line}");
    }
    ensure!(!node.has_device()?);
    Ok(())
}

#[test]
fn a_certificate_for_another_name_and_a_port_without_tls_are_told_apart() -> Result<()> {
    testnet::skip_unless_available!();
    let mut lab = Lab::new()?;
    let host = lab.server("names")?;
    let folder = Folder::new("tls")?;
    let files = certificates(folder.path(), "control.example")?;
    let mut server = Server::start(&host, files.served())?;
    let node = Node::start_as(&host, "tailrace0", 41641, files.trusted())?;
    let url = server.url();

    let line = node.refused(&format!("up --login-server {url}"))?;
    ensure!(line.contains("another name"), "{line}");

    server.stop();
    let _plain = Server::start(&host, Options::default())?;
    let line = node.refused(&format!("up --login-server {url}"))?;
    ensure!(line.contains("http://"), "{line}");
    Ok(())
}

/// An authority, and a server's certificate that it signed.
struct Files {
    authority: PathBuf,
    certificate: PathBuf,
    key: PathBuf,
}

impl Files {
    fn served(&self) -> Options {
        Options {
            tls: Some((self.certificate.clone(), self.key.clone())),
            ..Options::default()
        }
    }

    fn trusted(&self) -> Vec<(&'static str, PathBuf)> {
        vec![("SSL_CERT_FILE", self.authority.clone())]
    }
}

fn certificates(folder: &Path, name: &str) -> Result<Files> {
    let mut params = CertificateParams::new(Vec::new())?;
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority_key = KeyPair::generate()?;
    let authority = params.self_signed(&authority_key)?;
    let issuer = Issuer::new(params, authority_key);
    let key = KeyPair::generate()?;
    let certificate = CertificateParams::new(vec![name.to_owned()])?.signed_by(&key, &issuer)?;
    let files = Files {
        authority: folder.join("authority.pem"),
        certificate: folder.join("server.pem"),
        key: folder.join("server.key"),
    };
    fs::write(&files.authority, authority.pem())?;
    fs::write(&files.certificate, certificate.pem())?;
    fs::write(&files.key, key.serialize_pem())?;
    Ok(files)
}
