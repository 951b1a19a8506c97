//! Sockets: one transaction a change, dumps, and notifications of what others did.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::decode::{self, SetName, Sets};
use super::encode::{
    self, RULE_CHAIN, RULE_HANDLE, RULE_TABLE, RULE_USER_DATA, TABLE_NAME, user_data,
};
use super::{HostChain, Layer, Rule, Table};
use crate::Error;
use crate::netfilter::socket::Socket;
use crate::netfilter::wire::{APPEND, Attribute, CREATE, DUMP, Frame, Writer};

const SUBSYSTEM: u16 = 10 << 8; // NFNL_SUBSYS_NFTABLES
const NEW_TABLE: u16 = SUBSYSTEM;
const GET_TABLE: u16 = SUBSYSTEM | 1;
const DELETE_TABLE: u16 = SUBSYSTEM | 2;
const NEW_CHAIN: u16 = SUBSYSTEM | 3;
const GET_CHAIN: u16 = SUBSYSTEM | 4;
const NEW_RULE: u16 = SUBSYSTEM | 6;
const GET_RULE: u16 = SUBSYSTEM | 7;
const DELETE_RULE: u16 = SUBSYSTEM | 8;
const NEW_ELEMENTS: u16 = SUBSYSTEM | 12;
const GET_ELEMENTS: u16 = SUBSYSTEM | 13;
const DELETE_ELEMENTS: u16 = SUBSYSTEM | 14;
const NEW_GENERATION: u16 = SUBSYSTEM | 15;
const BATCH_BEGIN: u16 = 16; // NFNL_MSG_BATCH_BEGIN
const BATCH_END: u16 = 17;
const BATCH_SUBSYSTEM: u16 = 10;
/// `NFPROTO_UNSPEC`: of all families.
const UNSPECIFIED: u8 = 0;
/// `NFNLGRP_NFTABLES`.
const GROUP: u32 = 7;

// enum nft_table_attributes, nft_chain_attributes
const TABLE_FLAGS: u16 = 2;
const TABLE_HANDLE: u16 = 4;
const CHAIN_TABLE: u16 = 1;
const CHAIN_HANDLE: u16 = 2;
const CHAIN_NAME: u16 = 3;
const CHAIN_HOOK: u16 = 4;
const CHAIN_POLICY: u16 = 5;

const BUFFER_LEN: usize = 1 << 20;
const WATCH_BUFFER_LEN: usize = 4 << 20;

/// A socket for changes and dumps in one network namespace.
#[derive(Debug)]
pub struct Nft {
    socket: Socket,
}

/// What tells whether somebody touched a table: the kernel's handles, which it never gives twice,
/// and what can change under them.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Snapshot {
    parts: Vec<BTreeMap<u16, Vec<u8>>>,
}

/// A rule of ours in a chain of others.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Foreign {
    /// Family of the chain.
    pub layer: Layer,
    /// Table of the chain.
    pub table: String,
    /// The chain.
    pub chain: String,
    handle: u64,
}

impl Nft {
    /// Opens a socket in the calling thread's network namespace.
    ///
    /// # Errors
    ///
    /// [`Error::Failed`] if the kernel gives no socket.
    pub fn open() -> Result<Self, Error> {
        let socket = Socket::open(&[], BUFFER_LEN)?;
        Ok(Self { socket })
    }

    /// Puts `table` in the place of what bears its name, in one transaction: no packet meets
    /// half a table.
    ///
    /// # Errors
    ///
    /// [`Error::NotPermitted`] without `CAP_NET_ADMIN`; [`Error::Failed`] for what the kernel cannot do,
    /// and nothing is changed then.
    pub async fn replace(&mut self, table: &Table) -> Result<(), Error> {
        let name = table.name.as_str();
        let mut batch = Batch::new(&mut self.socket);
        // Deleting fails on an absent table, so it is made first.
        batch.push(NEW_TABLE, CREATE, Layer::Inet, |message| {
            message.put_text(TABLE_NAME, name);
        });
        batch.push(DELETE_TABLE, 0, Layer::Inet, |message| {
            message.put_text(TABLE_NAME, name);
        });
        batch.push(NEW_TABLE, CREATE, Layer::Inet, |message| {
            message.put_text(TABLE_NAME, name);
        });
        for chain in &table.chains {
            batch.push(NEW_CHAIN, CREATE, Layer::Inet, |message| {
                encode::chain(message, name, chain);
            });
        }
        for chain in &table.chains {
            for rule in &chain.rules {
                batch.push(NEW_RULE, CREATE | APPEND, Layer::Inet, |message| {
                    encode::rule(message, name, &chain.name, rule);
                });
            }
        }
        batch.commit("NFT_MSG_NEWTABLE", name).await
    }

    /// Deletes the `inet` table `name`; an absent one is as good.
    ///
    /// # Errors
    ///
    /// Whatever the kernel refused.
    pub async fn delete(&mut self, name: &str) -> Result<(), Error> {
        let mut batch = Batch::new(&mut self.socket);
        batch.push(DELETE_TABLE, 0, Layer::Inet, |message| {
            message.put_text(TABLE_NAME, name);
        });
        match batch.commit("NFT_MSG_DELTABLE", name).await {
            Err(error) if error.is_gone() => Ok(()),
            other => other,
        }
    }

    /// Returns the present state of the `inet` table `name`; `None` if there is none. Two are equal
    /// if nobody changed a flag, chain or rule between them.
    ///
    /// # Errors
    ///
    /// Whatever the kernel answered.
    pub async fn snapshot(&mut self, name: &str) -> Result<Option<Snapshot>, Error> {
        let keep = |kinds: &'static [u16]| {
            move |frame: Frame<'_>| {
                // Attribute 1 is the table's name in all three.
                let ours = find(frame, TABLE_NAME).and_then(|found| found.text()) == Some(name);
                ours.then(|| {
                    frame
                        .attributes()
                        .filter(|attribute| kinds.contains(&attribute.kind))
                        .map(|attribute| (attribute.kind, attribute.value.to_vec()))
                        .collect()
                })
            }
        };
        let tables = keep(&[TABLE_FLAGS, TABLE_HANDLE]);
        let chains = keep(&[CHAIN_HANDLE, CHAIN_NAME, CHAIN_HOOK, CHAIN_POLICY]);
        let rules = keep(&[RULE_CHAIN, RULE_HANDLE]);
        let mut parts = self.dump(GET_TABLE, Layer::Inet, name, tables).await?;
        if parts.is_empty() {
            return Ok(None);
        }
        parts.extend(self.dump(GET_CHAIN, Layer::Inet, name, chains).await?);
        parts.extend(self.dump(GET_RULE, Layer::Inet, name, rules).await?);
        Ok(Some(Snapshot { parts }))
    }

    /// Returns the chains of a table as (layer, chain), for tables that are not ours.
    ///
    /// # Errors
    ///
    /// Whatever the kernel answered.
    pub async fn chains(&mut self, layer: Layer, table: &str) -> Result<Vec<String>, Error> {
        self.dump(GET_CHAIN, layer, table, |frame| {
            let of = find(frame, CHAIN_TABLE)?;
            let name = find(frame, CHAIN_NAME)?;
            (of.text() == Some(table)).then(|| name.text().map(str::to_owned))?
        })
        .await
    }

    /// Returns the packets that the rules of a chain of the `inet` table `name` have counted.
    ///
    /// # Errors
    ///
    /// Whatever the kernel answered.
    pub async fn counted(&mut self, name: &str, chain: &str) -> Result<u64, Error> {
        let take = |frame: Frame<'_>| decode::counted(frame, name, chain);
        let counts = self.dump(GET_RULE, Layer::Inet, name, take).await?;
        Ok(counts.iter().sum())
    }

    /// Returns every chain of every table of a family we know, with what is plain of its rules.
    ///
    /// # Errors
    ///
    /// Whatever the kernel answered.
    pub async fn ruleset(&mut self) -> Result<Vec<HostChain>, Error> {
        let all = "every table";
        let request = |kind| {
            move |writer: &mut Writer, sequence| {
                writer.message(kind, DUMP, sequence, (UNSPECIFIED, 0), |_| {});
            }
        };
        let chains = request(GET_CHAIN);
        let operation = "NFT_MSG_GETCHAIN";
        let mut chains = self
            .socket
            .dump(operation, all, chains, decode::chain)
            .await?;
        let rules = request(GET_RULE);
        let operation = "NFT_MSG_GETRULE";
        let rules = self
            .socket
            .dump(operation, all, rules, decode::rule)
            .await?;
        let names: BTreeSet<SetName> = rules.iter().flat_map(decode::RawRule::sets).collect();
        let mut sets = Sets::new();
        for name in names {
            let frames = self.elements(&name).await?;
            sets.insert(name, frames);
        }
        for chain in &mut chains {
            let own = rules.iter().filter(|rule| rule.is_in(chain));
            chain.rules = own.map(|rule| rule.resolve(&sets)).collect();
        }
        Ok(chains)
    }

    async fn elements(&mut self, name: &SetName) -> Result<Vec<decode::Element>, Error> {
        let (layer, table, set) = name;
        let request = |writer: &mut Writer, sequence| {
            let header = (layer.number(), 0);
            writer.message(GET_ELEMENTS, DUMP, sequence, header, |message| {
                message.put_text(1, table);
                message.put_text(2, set);
            });
        };
        let take = |frame: Frame<'_>| Some(decode::elements(frame));
        let operation = "NFT_MSG_GETSETELEM";
        match self.socket.dump(operation, set, request, take).await {
            Ok(frames) => Ok(frames.concat()),
            // Gone with its rule.
            Err(error) if error.is_gone() => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }

    /// Returns the rules with `comment` in a table that is not ours.
    ///
    /// # Errors
    ///
    /// Whatever the kernel answered.
    pub async fn marked(
        &mut self,
        layer: Layer,
        table: &str,
        comment: &str,
    ) -> Result<Vec<Foreign>, Error> {
        let mark = user_data(comment);
        self.dump(GET_RULE, layer, table, |frame| {
            if find(frame, RULE_TABLE)?.text() != Some(table)
                || find(frame, RULE_USER_DATA)?.value != mark
            {
                return None;
            }
            Some(Foreign {
                layer,
                table: table.to_owned(),
                chain: find(frame, RULE_CHAIN)?.text()?.to_owned(),
                handle: find(frame, RULE_HANDLE)?.array().map(u64::from_be_bytes)?,
            })
        })
        .await
    }

    /// Takes `stale` away and puts `fresh` at the top of chains, the first of them topmost, in one
    /// transaction. Nothing else is touched.
    ///
    /// # Errors
    ///
    /// [`Error::Failed`]; [`Error::is_gone`] if a chain or a rule vanished meanwhile: look again.
    pub async fn exchange(
        &mut self,
        layer: Layer,
        table: &str,
        stale: &[Foreign],
        fresh: &[(&str, Rule)],
    ) -> Result<(), Error> {
        if stale.is_empty() && fresh.is_empty() {
            return Ok(());
        }
        let mut batch = Batch::new(&mut self.socket);
        for rule in stale {
            batch.push(DELETE_RULE, 0, rule.layer, |message| {
                message.put_text(RULE_TABLE, &rule.table);
                message.put_text(RULE_CHAIN, &rule.chain);
                message.put(RULE_HANDLE, &rule.handle.to_be_bytes());
            });
        }
        for (chain, rule) in fresh.iter().rev() {
            batch.push(NEW_RULE, CREATE, layer, |message| {
                encode::rule(message, table, chain, rule);
            });
        }
        batch.commit("NFT_MSG_NEWRULE", table).await
    }

    async fn dump<T>(
        &mut self,
        kind: u16,
        layer: Layer,
        subject: &str,
        take: impl Fn(Frame<'_>) -> Option<T>,
    ) -> Result<Vec<T>, Error> {
        let operation = match kind {
            GET_TABLE => "NFT_MSG_GETTABLE",
            GET_CHAIN => "NFT_MSG_GETCHAIN",
            _ => "NFT_MSG_GETRULE",
        };
        let request = |writer: &mut Writer, sequence| {
            writer.message(kind, DUMP, sequence, (layer.number(), 0), |message| {
                if kind == GET_RULE {
                    message.put_text(RULE_TABLE, subject); // the kernel leaves the others out
                }
            });
        };
        match self.socket.dump(operation, subject, request, take).await {
            Err(error) if error.is_gone() => Ok(Vec::new()),
            other => other,
        }
    }
}

/// Somebody else changed something in a table.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Touched {
    /// Family of the table.
    pub layer: Layer,
    /// Its name.
    pub table: String,
    /// Whether only the contents of a set changed.
    pub elements: bool,
}

/// Hears of changes to the ruleset of one network namespace.
#[derive(Debug)]
pub struct Watcher {
    socket: Socket,
    own: u32,
    pending: VecDeque<Touched>,
}

impl Watcher {
    /// Subscribes in the calling thread's network namespace; what `own` changes is not reported.
    ///
    /// # Errors
    ///
    /// [`Error::NotPermitted`] without `CAP_NET_ADMIN`; [`Error::Failed`] if the kernel gives no socket.
    pub fn open(own: &Nft) -> Result<Self, Error> {
        Ok(Self {
            socket: Socket::open(&[GROUP], WATCH_BUFFER_LEN)?,
            own: own.socket.port(),
            pending: VecDeque::new(),
        })
    }

    /// Waits until somebody else changes a table of a family we know. Dropping the future loses nothing.
    ///
    /// # Errors
    ///
    /// [`Error::Overrun`] if notifications are lost: look at everything; the watcher goes on.
    /// [`Error::Failed`] if the socket failed.
    pub async fn next(&mut self) -> Result<Touched, Error> {
        loop {
            if let Some(touched) = self.pending.pop_front() {
                return Ok(touched);
            }
            let own = self.own;
            let datagram = self.socket.receive("NFNLGRP_NFTABLES").await?;
            for frame in Frame::all(datagram).filter(|frame| frame.port != own) {
                let touched = touched(frame);
                // A flush says the same of every rule.
                if touched.is_some() && touched.as_ref() != self.pending.back() {
                    self.pending.extend(touched);
                }
            }
        }
    }
}

fn touched(frame: Frame<'_>) -> Option<Touched> {
    if frame.kind & 0xff00 != SUBSYSTEM || frame.kind == NEW_GENERATION {
        return None;
    }
    // Attribute 1 is the table's name in tables, chains, rules, sets, elements and objects.
    Some(Touched {
        layer: Layer::parse(frame.family())?,
        table: find(frame, TABLE_NAME)?.text()?.to_owned(),
        elements: [NEW_ELEMENTS, DELETE_ELEMENTS].contains(&frame.kind),
    })
}

fn find(frame: Frame<'_>, kind: u16) -> Option<Attribute<'_>> {
    frame.attributes().find(|attribute| attribute.kind == kind)
}

/// A transaction being written.
struct Batch<'a> {
    socket: &'a mut Socket,
    writer: Writer,
    first: u32,
    last: u32,
}

impl<'a> Batch<'a> {
    fn new(socket: &'a mut Socket) -> Self {
        let first = socket.next_sequence();
        let mut writer = Writer::default();
        writer.message(BATCH_BEGIN, 0, first, (0, BATCH_SUBSYSTEM), |_| {});
        Self {
            socket,
            writer,
            first,
            last: first,
        }
    }

    fn push(&mut self, kind: u16, flags: u16, layer: Layer, body: impl FnOnce(&mut Writer)) {
        let sequence = self.socket.next_sequence();
        self.last = sequence;
        let header = (layer.number(), 0);
        self.writer.message(kind, flags, sequence, header, body);
    }

    /// Sends it and waits for the verdict: refusals of any part and of the whole (numbered `first`), or
    /// the answer to the last part. Answers to all parts would overflow the socket.
    async fn commit(mut self, operation: &'static str, subject: &str) -> Result<(), Error> {
        self.writer.acknowledge();
        let end = self.socket.next_sequence();
        self.writer
            .message(BATCH_END, 0, end, (0, BATCH_SUBSYSTEM), |_| {});
        self.socket
            .execute(operation, subject, &self.writer, self.first..=self.last)
            .await
    }
}
