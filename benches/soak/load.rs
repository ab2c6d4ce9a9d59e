//! What clients do to a host all day: each client has a sprite of its own, and does one thing after the other.

use std::time::Duration;

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use janebot::sprites::http::HttpSprites;
use janebot::sprites::{ExecEvent, NetworkPolicy, Signal, Sprites};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio_websockets::{ClientBuilder, Message};

use crate::rig::{Outcome, Rig, request};

/// Checkpoints of one sprite before it is made anew.
const CHECKPOINTS: u32 = 24;

pub struct Client<'a> {
    pub rig: &'a Rig,
    pub name: String,
    pub chance: StdRng,
    pub checkpoints: u32,
}

impl<'a> Client<'a> {
    pub async fn new(rig: &'a Rig, number: u64) -> Outcome<Self> {
        let name = format!("soak-{number}");
        let client = Self { rig, name, chance: StdRng::seed_from_u64(number), checkpoints: 0 };
        client.make().await?;
        Ok(client)
    }

    fn sprites(&self) -> &HttpSprites {
        &self.rig.sprites
    }

    async fn make(&self) -> Outcome {
        self.sprites().create(&self.name, &[]).await?;
        self.sprites().set_policy(&self.name, &NetworkPolicy::deny_all()).await?;
        self.rig.ok(&self.name, &["sh", "-c", "mkdir -p work; echo clean > work/state"]).await?;
        self.sprites().create_checkpoint(&self.name, "clean").await?;
        Ok(())
    }

    /// Does the next thing; its name.
    pub async fn act(&mut self) -> Outcome<&'static str> {
        Ok(match self.chance.random_range(0..100) {
            0..40 => {
                self.rig.ok(&self.name, &["true"]).await?;
                "exec"
            }
            40..50 => {
                let script =
                    "for i in $(seq 200); do echo $i > work/$i; done; seq 20000; setsid sleep 5 > /dev/null 2>&1 &";
                self.rig.ok(&self.name, &["sh", "-c", script]).await?;
                "long exec"
            }
            50..60 => {
                self.terminal().await?;
                "terminal"
            }
            60..75 => {
                self.files().await?;
                "files"
            }
            75..80 => {
                self.kill().await?;
                "kill"
            }
            80..85 => {
                self.denied().await?;
                "denied egress"
            }
            85..95 => {
                let ids = self.sprites().checkpoints(&self.name).await?;
                let id = &ids[self.chance.random_range(0..ids.len())].id;
                self.sprites().restore(&self.name, id).await?;
                "restore"
            }
            95..99 => {
                self.sprites().create_checkpoint(&self.name, "").await?;
                self.checkpoints += 1;
                if self.checkpoints < CHECKPOINTS {
                    return Ok("checkpoint");
                }
                self.checkpoints = 0;
                self.sprites().delete(&self.name).await?;
                self.make().await?;
                "made anew"
            }
            _ => {
                self.sprites().delete(&self.name).await?;
                self.make().await?;
                self.checkpoints = 0;
                "made anew"
            }
        })
    }

    /// A program on a terminal, which echoes.
    async fn terminal(&self) -> Outcome {
        let address = self.rig.host.url().replacen("http", "ws", 1);
        let uri = format!("{address}/v1/sprites/{}/exec?cmd=cat&tty=true&max_run_after_disconnect=1s", self.name);
        let bearer = format!("Bearer {}", crate::rig::TOKEN).parse()?;
        let builder = ClientBuilder::from_uri(uri.parse()?).add_header(http::header::AUTHORIZATION, bearer)?;
        let (mut socket, _) = builder.connect().await?;
        socket.send(Message::binary(&b"hello\n\x04"[..])).await?;
        let mut seen = Vec::new();
        while let Some(message) = socket.next().await {
            let message = message?;
            if message.is_binary() {
                seen.extend_from_slice(message.as_payload());
            }
        }
        if seen.starts_with(b"hello") { Ok(()) } else { Err(format!("the terminal said {seen:?}").into()) }
    }

    async fn files(&self) -> Outcome {
        let content = Bytes::from(vec![b'x'; 64 * 1024]);
        self.sprites().write_file(&self.name, "work/file", 0o644, content.clone()).await?;
        let read = self.sprites().read_file(&self.name, "work/file", 1 << 20).await?;
        self.sprites().list_files(&self.name, "work", true).await?;
        if read == content { Ok(()) } else { Err("a file was read otherwise than it was written".into()) }
    }

    async fn kill(&self) -> Outcome {
        let mut exec =
            self.sprites().exec(&self.name, request(&["sh", "-c", "echo up; sleep 600 & sleep 600"])).await?;
        let session = exec.session.clone();
        match exec.next().await {
            Some(Ok(ExecEvent::Stdout(_))) => {}
            other => return Err(format!("instead of output there came {other:?}").into()),
        }
        self.sprites().kill(&self.name, &session, Signal::Terminate, Duration::from_secs(1)).await?;
        while let Some(event) = exec.next().await {
            event?;
        }
        Ok(())
    }

    async fn denied(&self) -> Outcome {
        let output = self
            .rig
            .run(&self.name, &["sh", "-c", "getent hosts denied.example.com; exec 3<>/dev/udp/1.1.1.1/53"])
            .await?;
        if output.status == 0 { Err("a forbidden name was found".into()) } else { Ok(()) }
    }
}
