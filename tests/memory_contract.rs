//! The in-memory host of the simulation keeps the contract of the Sprites API, so that what the simulation finds holds
//! for the real one. It has no shell: the programs are left out.

mod contract;
#[path = "doubles/mod.rs"]
mod doubles;

use doubles::memory_sprites::MemorySprites;
use doubles::memory_sprites::faults::FaultPlan;
use janebot::world::World;

#[tokio::test(start_paused = true)]
async fn the_in_memory_host_keeps_the_contract() {
    let sprites = MemorySprites::new(World::seeded(7), FaultPlan::none());
    contract::keeps_the_contract(sprites, "contract-", false).await;
}
