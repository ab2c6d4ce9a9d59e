//! Building a runner's sprite: from nothing to a checkpoint with the pinned agents in it.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use sha2::{Digest, Sha256};

use super::{Context, Trouble, claim, scripts};
use crate::agent::{self, Launch, Way};
use crate::config::{AgentKind, AgentsConfig, NetworkConfig, UsageLimits};
use crate::job::JobSpec;
use crate::journal::{Journal, RunnerRow};
use crate::sprites::{NetworkPolicy, Sprites, SpritesError};
use crate::vault::VaultHandle;
use crate::vault::budget::Budget;
use crate::vault::pass::{Holder, Pass};
use crate::vault::scan::Secrets;

/// A script that makes folders.
const SCRIPT_TIMEOUT: Duration = Duration::from_secs(60);

/// An agent's program on this machine, ready to be put into a sprite.
#[derive(Clone, PartialEq, Eq)]
pub struct Program {
    pub content: Bytes,
    /// What its `--version` says, at least; empty when that is not known.
    pub says: String,
}

/// Brings an agent's program to this machine; the error is a sentence for the operator.
pub type Fetch = Arc<dyn Fn(AgentKind) -> BoxFuture<'static, Result<Program, String>> + Send + Sync>;

/// How agents reach their servers.
pub enum Access {
    /// By the vault, with a pass that is good for one job.
    Vault(VaultHandle),
    /// Directly, with the key in the sprite.
    Direct(BTreeMap<AgentKind, Way>),
}

/// A job that can begin: its pass, if its agent needs one, is good as long as this lives.
pub struct Ready {
    pub launch: Launch,
    pub pass: Option<Pass>,
}

/// What a sprite is built from. Two plans with one fingerprint build the same machine.
pub struct BuildPlan {
    pub agents: AgentsConfig,
    /// The version of each agent's program; `shell` has none, it is the sprite's own bash.
    pub versions: BTreeMap<AgentKind, String>,
    /// How each agent reaches its server. Told at each start, so no part of the machine.
    pub access: Access,
    /// What jobs may reach.
    pub policy: NetworkPolicy,
    /// Names of the agents, then a hash over all that goes in, as in `claude+shell-1f0c…`.
    pub fingerprint: String,
    /// How the host isolates, for the receipt.
    pub isolation: String,
    /// What weakens the isolation, for the receipt.
    pub warnings: Vec<String>,
    pub fetch: Fetch,
    /// What jobs may use.
    pub limits: UsageLimits,
    /// What jobs may reach by their channel.
    pub network: NetworkConfig,
    /// What no answer may hold.
    pub secrets: Secrets,
}

impl std::fmt::Debug for BuildPlan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BuildPlan").field("fingerprint", &self.fingerprint).finish_non_exhaustive()
    }
}

impl BuildPlan {
    /// Joins the parts and computes the fingerprint. `versions` names what `fetch` will bring for each agent.
    pub fn new(
        agents: AgentsConfig,
        policy: NetworkPolicy,
        versions: BTreeMap<AgentKind, String>,
        access: Access,
        isolation: String,
        warnings: Vec<String>,
        fetch: Fetch,
    ) -> Self {
        let mut input = String::new();
        for (kind, version) in &versions {
            writeln!(input, "agent {} {version}", kind.name()).expect("a String takes any text");
        }
        for rule in &policy.rules {
            writeln!(input, "rule {rule:?}").expect("a String takes any text");
        }
        for script in [scripts::build(SCRIPT_TIMEOUT), scripts::verify(&[], SCRIPT_TIMEOUT)] {
            writeln!(input, "script {:?}", script.argv).expect("a String takes any text");
        }
        let hash = hex::encode(&Sha256::digest(input.as_bytes())[..8]);
        let fingerprint = format!("{}-{hash}", names(&agents.installed()));
        Self {
            agents,
            versions,
            access,
            policy,
            fingerprint,
            isolation,
            warnings,
            fetch,
            limits: UsageLimits::default(),
            network: NetworkConfig::default(),
            secrets: Secrets::none(),
        }
    }

    /// What a runner needs to run this job. A pass from here outlives the job by `margin` at the most, whatever becomes
    /// of who holds it.
    ///
    /// # Errors
    /// In words for whoever asked, when its agent would not take the job.
    pub fn ready(&self, spec: &JobSpec, runner: &str, budget: Budget, margin: Duration) -> Result<Ready, String> {
        let kind = AgentKind::named(&spec.agent).ok_or_else(|| format!("there is no agent {}", spec.agent))?;
        let (way, pass) = match &self.access {
            Access::Vault(vault) => {
                let (job, requester) = (spec.job.clone(), spec.requester.clone());
                let holder = Holder { job, runner: runner.to_owned(), requester };
                let pass = vault.open(kind, holder, budget, spec.run_timeout + margin);
                (pass.as_ref().map(|pass| vault.way(pass)), pass)
            }
            Access::Direct(ways) => (ways.get(&kind).cloned(), None),
        };
        let launch =
            agent::launch(kind, &self.agents, way.as_ref(), &spec.prompt).map_err(|error| error.to_string())?;
        Ok(Ready { launch, pass })
    }

    /// Whether a sprite of this other generation has the agents that this plan's jobs need.
    pub fn is_served_by(&self, fingerprint: &str) -> bool {
        fingerprint.rsplit_once('-').is_some_and(|(agents, _)| agents == names(&self.agents.installed()))
    }
}

fn names(kinds: &[AgentKind]) -> String {
    kinds.iter().map(|kind| kind.name()).collect::<Vec<_>>().join("+")
}

/// Replaces the runner's sprite, if it has one, with a newly built one, and records it as built (still to be verified).
pub async fn build<S: Sprites, J: Journal>(context: &Context<S, J>, plan: &BuildPlan) -> Result<(), Trouble> {
    let Context { name, sprites, journal, .. } = context;
    // Programs first: there is no use in deleting a sprite that can't be replaced.
    let mut programs = Vec::new();
    for (kind, version) in &plan.versions {
        programs.push((*kind, version, (plan.fetch)(*kind).await.map_err(Trouble::outside)?));
    }
    context.assert_not_foreign().await?;
    match sprites.delete(name).await {
        Ok(()) | Err(SpritesError::NotFound { .. }) => {}
        Err(error) => return Err(error.into()),
    }
    journal.forget_runner(name).await?;
    let labels = claim::labels(&context.deployment, context.world.now());
    let sprite = sprites.create(name, &labels).await?;

    // Programs are brought from outside, so nothing is reached from inside while the machine is built.
    sprites.set_policy(name, &NetworkPolicy::deny_all()).await?;
    expect_success(
        sprites.exec(name, scripts::build(SCRIPT_TIMEOUT)).await?.output(scripts::OUTPUT_LIMIT).await?,
        "build",
    )?;
    let mut stamp = String::new();
    for (kind, version, program) in &programs {
        let agent = kind.name();
        writeln!(stamp, "{agent} {} {version}", program.content.len()).expect("a String takes any text");
        sprites.write_file(name, &format!(".local/bin/{agent}"), 0o755, program.content.clone()).await?;
    }
    sprites.write_file(name, ".janebot/agents", 0o600, stamp.into()).await?;
    for (kind, _, program) in &programs {
        smoke(sprites, name, *kind, program).await?;
    }
    sprites.set_policy(name, &plan.policy).await?;
    let checkpoint = sprites.create_checkpoint(name, &format!("janebot {}", plan.fingerprint)).await?;
    let row = RunnerRow {
        runner: name.clone(),
        sprite_id: sprite.id,
        checkpoint,
        fingerprint: plan.fingerprint.clone(),
        dirty: true,
        last_job: None,
        canary: None,
        boot: String::new(),
        fence: 0,
    };
    journal.built(&row).await?;
    Ok(())
}

/// Runs the agent once, so that a program which can't start here fails the build and not a user's job.
async fn smoke<S: Sprites>(sprites: &S, name: &str, kind: AgentKind, program: &Program) -> Result<(), Trouble> {
    let agent = kind.name();
    let argv = [format!("~/.local/bin/{agent}"), "--version".to_owned()];
    let exec = sprites.exec(name, scripts::try_out(&argv, SCRIPT_TIMEOUT)).await?;
    let output = exec.output(scripts::OUTPUT_LIMIT).await?;
    let said = String::from_utf8_lossy(&output.stdout);
    if output.status == 0 && said.contains(&program.says) {
        return Ok(());
    }
    let complaint = String::from_utf8_lossy(&output.stderr);
    let said: String = said.chars().chain(complaint.chars()).filter(|c| !c.is_control()).take(200).collect();
    Err(Trouble::sprite(format!(
        "`{agent} --version` in the sprite ended with status {} and should say `{}`; it says: {said}",
        output.status, program.says
    )))
}

fn expect_success(output: crate::sprites::Output, what: &str) -> Result<(), Trouble> {
    if output.status == 0 {
        return Ok(());
    }
    let said: String = String::from_utf8_lossy(&output.stderr).chars().filter(|c| !c.is_control()).take(200).collect();
    Err(Trouble::sprite(format!("the {what} script ended with status {}: {said}", output.status)))
}
