//! The pool's supervisor: the pool manager first, then the runners, each restarted by itself.
//!
//! A pool manager that keeps failing escalates to the root, which starts the whole pool anew; a runner that keeps
//! failing rests and is tried again, and the others go on.

use std::sync::Arc;

use ractor::{Actor, ActorRef};
use tokio::sync::Semaphore;

use super::manager::PoolManager;
use super::{PoolHandle, PoolMsg};
use crate::config::PoolConfig;
use crate::journal::Journal;
use crate::runner::build::BuildPlan;
use crate::runner::{Context, Runner, RunnerArgs};
use crate::sprites::Sprites;
use crate::supervise::current::{self, Follower, Publisher};
use crate::supervise::{ChildSpec, RestartPolicy, Supervisor};
use crate::world::World;

/// What the pool works with.
#[derive(Clone)]
pub struct PoolParts<S, J> {
    pub sprites: S,
    pub journal: J,
    pub world: World,
    /// This deployment's identity, from the journal.
    pub deployment: String,
    /// What runners are built from; a change leads to a rolling refresh.
    pub plan: Follower<Arc<BuildPlan>>,
}

/// The pool as a child for the root supervisor, and the way to it over all restarts.
pub fn child<S: Sprites, J: Journal>(config: PoolConfig, parts: PoolParts<S, J>) -> (ChildSpec, PoolHandle) {
    let (current, handle) = current::channel(None);
    let current = Arc::new(current);
    let spec = ChildSpec::new("pool", RestartPolicy::ESSENTIAL, move |root| {
        let specs = children(&config, &parts, &current);
        let supervisor = Supervisor { name: "pool", world: parts.world.clone() };
        async move { Ok(Actor::spawn_linked(None, supervisor, specs, root).await?.0.get_cell()) }
    });
    (spec, PoolHandle::new(handle))
}

type Current = Arc<Publisher<Option<ActorRef<PoolMsg>>>>;

fn children<S: Sprites, J: Journal>(config: &PoolConfig, parts: &PoolParts<S, J>, current: &Current) -> Vec<ChildSpec> {
    // Half of the runners at a time may be out of service for a refresh.
    let refreshes = Arc::new(Semaphore::new((config.runners / 2).max(1)));
    let manager = manager(config, current.clone());
    let runners = (0..config.runners).map(|n| {
        let name = format!("{}-{n}", config.prefix);
        let context = Context {
            name: name.clone(),
            sprites: parts.sprites.clone(),
            journal: parts.journal.clone(),
            world: parts.world.clone(),
            deployment: parts.deployment.clone(),
        };
        let (plan, current, refreshes) = (parts.plan.clone(), current.clone(), refreshes.clone());
        ChildSpec::new(name, RestartPolicy::SPARE, move |supervisor| {
            let args = RunnerArgs { plan: plan.clone(), pool: current.follow(), refreshes: refreshes.clone() };
            let runner = Runner { context: context.clone() };
            async move { Ok(Actor::spawn_linked(None, runner, args, supervisor).await?.0.get_cell()) }
        })
    });
    std::iter::once(manager).chain(runners).collect()
}

fn manager(config: &PoolConfig, current: Current) -> ChildSpec {
    let (max_queue, sharing, runners) = (config.max_queue, config.sharing.clone(), config.runners);
    ChildSpec::new("pool manager", RestartPolicy::ESSENTIAL, move |supervisor| {
        let (current, sharing) = (current.clone(), sharing.clone());
        async move {
            let manager = PoolManager { max_queue, sharing, runners };
            let (manager, _join) = Actor::spawn_linked(None, manager, (), supervisor).await?;
            current.set(Some(manager.clone()));
            Ok(manager.get_cell())
        }
    })
}
