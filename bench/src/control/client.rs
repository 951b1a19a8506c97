//! A simulated node: ts2021 over real TCP, Noise and HTTP/2, no more than it takes to be measured.

use std::net::SocketAddr;

use anyhow::{Context as _, bail, ensure};
use bytes::{Bytes, BytesMut};
use control_proto::capver::CapabilityVersion;
use control_proto::tailcfg::{
    Compress, Hostinfo, MapRequest, MapResponse, NetInfo, RegisterAuth, RegisterRequest,
    RegisterResponse, ServerKeys,
};
use control_proto::{frame, json};
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use keys::{DiscoPrivate, MachinePrivate, MachinePublic, NodePrivate};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

/// Asks a server for its Noise key, over plain HTTP.
pub(crate) async fn server_key(server: SocketAddr) -> anyhow::Result<MachinePublic> {
    let socket = TcpStream::connect(server)
        .await
        .context("cannot reach the server")?;
    server_key_over(socket, &server.to_string()).await
}

/// Asks for the Noise key over a connection to `host`, TLS or not.
pub(crate) async fn server_key_over<T>(io: T, host: &str) -> anyhow::Result<MachinePublic>
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(io)).await?;
    let driver = tokio::spawn(connection);
    let request = Request::get("/key?v=117")
        .header("Host", host)
        .body(Full::<Bytes>::default())?;
    let response = sender.send_request(request).await?;
    ensure!(
        response.status() == StatusCode::OK,
        "/key answered {}",
        response.status()
    );
    let body = response.into_body().collect().await?.to_bytes();
    driver.abort();
    Ok(json::from_slice::<ServerKeys>(&body)?.public_key)
}

/// What a node is to the tailnet.
#[derive(Debug)]
pub(crate) struct Identity {
    /// Of the computer.
    pub(crate) machine: MachinePrivate,
    /// On the overlay.
    pub(crate) node: NodePrivate,
    /// Of the process.
    pub(crate) disco: DiscoPrivate,
    /// Host name.
    pub(crate) hostname: String,
}

impl Identity {
    /// A fresh one.
    pub(crate) fn new(hostname: &str) -> Self {
        Self {
            machine: MachinePrivate::generate(),
            node: NodePrivate::generate(),
            disco: DiscoPrivate::generate(),
            hostname: hostname.to_owned(),
        }
    }

    /// What is told about the host.
    pub(crate) fn hostinfo(&self) -> Hostinfo {
        Hostinfo {
            hostname: self.hostname.clone(),
            os: "linux".to_owned(),
            ipn_version: "1.98.9".to_owned(),
            backend_log_id: "0".repeat(64),
            net_info: Some(NetInfo {
                preferred_derp: 900,
                ..NetInfo::default()
            }),
            ..Hostinfo::default()
        }
    }

    /// A registration, with an auth key or without.
    pub(crate) fn register(&self, auth_key: Option<&str>) -> RegisterRequest {
        RegisterRequest {
            version: CapabilityVersion(117),
            node_key: self.node.public(),
            hostinfo: Some(self.hostinfo()),
            auth: auth_key.map(|key| RegisterAuth {
                auth_key: key.to_owned(),
                ..RegisterAuth::default()
            }),
            ..RegisterRequest::default()
        }
    }

    /// A request for the map stream.
    pub(crate) fn stream(&self) -> MapRequest {
        MapRequest {
            version: CapabilityVersion(117),
            compress: Compress::Zstd,
            keep_alive: true,
            stream: true,
            node_key: self.node.public(),
            disco_key: self.disco.public(),
            hostinfo: Some(self.hostinfo()),
            ..MapRequest::default()
        }
    }

    /// A lite update with these endpoints.
    pub(crate) fn lite(&self, endpoints: Vec<SocketAddr>) -> MapRequest {
        MapRequest {
            stream: false,
            omit_peers: true,
            endpoint_types: vec![1; endpoints.len()],
            endpoints,
            ..self.stream()
        }
    }
}

/// A node's connection to the server.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    sender: SendRequest<Full<Bytes>>,
}

impl Client {
    /// Dials, upgrades, and starts HTTP/2 inside the Noise channel.
    pub(crate) async fn connect(
        server: SocketAddr,
        key: &MachinePublic,
        machine: &MachinePrivate,
    ) -> anyhow::Result<Self> {
        let socket = TcpStream::connect(server)
            .await
            .context("cannot reach the server")?;
        socket.set_nodelay(true)?;
        Self::over(socket, &server.to_string(), key, machine).await
    }

    /// The same over a connection to `host`, TLS or not.
    pub(crate) async fn over<T>(
        io: T,
        host: &str,
        key: &MachinePublic,
        machine: &MachinePrivate,
    ) -> anyhow::Result<Self>
    where
        T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let noise = noise_io::upgrade_client(io, host, machine, key, 117).await?;
        let (sender, connection) =
            http2::handshake(TokioExecutor::new(), TokioIo::new(noise)).await?;
        tokio::spawn(connection);
        Ok(Self { sender })
    }

    /// Registers.
    pub(crate) async fn register(
        &self,
        request: &RegisterRequest,
    ) -> anyhow::Result<RegisterResponse> {
        let response = self
            .post("/machine/register", json::to_vec(request)?)
            .await?;
        let (status, body) = finish(response).await?;
        ensure!(
            status == StatusCode::OK,
            "{status}: {}",
            String::from_utf8_lossy(&body)
        );
        Ok(json::from_slice(&body)?)
    }

    /// Sends a lite update.
    pub(crate) async fn update(&self, request: &MapRequest) -> anyhow::Result<()> {
        let response = self.post("/machine/map", json::to_vec(request)?).await?;
        let (status, body) = finish(response).await?;
        ensure!(
            status == StatusCode::OK,
            "{status}: {}",
            String::from_utf8_lossy(&body)
        );
        Ok(())
    }

    /// Opens the map stream.
    pub(crate) async fn map(&self, request: &MapRequest) -> anyhow::Result<MapStream> {
        let response = self.post("/machine/map", json::to_vec(request)?).await?;
        if response.status() != StatusCode::OK {
            let (status, body) = finish(response).await?;
            bail!("{status}: {}", String::from_utf8_lossy(&body));
        }
        let body = response.into_body();
        Ok(MapStream {
            body,
            buffer: BytesMut::new(),
            compress: request.compress,
        })
    }

    /// Posts any body.
    pub(crate) async fn post(
        &self,
        path: &str,
        body: Vec<u8>,
    ) -> anyhow::Result<http::Response<Incoming>> {
        self.send(Method::POST, path, body).await
    }

    /// Sends any request.
    pub(crate) async fn send(
        &self,
        method: Method,
        path: &str,
        body: Vec<u8>,
    ) -> anyhow::Result<http::Response<Incoming>> {
        let request = Request::builder()
            .method(method)
            .uri(format!("https://unused{path}"))
            .body(Full::new(Bytes::from(body)))?;
        let mut sender = self.sender.clone();
        sender.ready().await?;
        Ok(sender.send_request(request).await?)
    }
}

/// Status and whole body of a response.
pub(crate) async fn finish(
    response: http::Response<Incoming>,
) -> anyhow::Result<(StatusCode, Bytes)> {
    let status = response.status();
    Ok((status, response.into_body().collect().await?.to_bytes()))
}

/// An open map stream.
#[derive(Debug)]
pub(crate) struct MapStream {
    body: Incoming,
    buffer: BytesMut,
    compress: Compress,
}

impl MapStream {
    /// The next frame as it came; `None` at the end of the stream.
    pub(crate) async fn next_raw(&mut self) -> anyhow::Result<Option<BytesMut>> {
        loop {
            if let Some(payload) = frame::split(&mut self.buffer)? {
                return Ok(Some(payload));
            }
            match self.body.frame().await {
                Some(part) => {
                    if let Ok(data) = part?.into_data() {
                        self.buffer.extend_from_slice(&data);
                    }
                }
                None => return Ok(None),
            }
        }
    }

    /// The next frame, decoded; an error at the end of the stream.
    pub(crate) async fn next(&mut self) -> anyhow::Result<MapResponse> {
        let payload = self.next_raw().await?.context("the map stream ended")?;
        Ok(frame::decode(&payload, self.compress)?)
    }
}
