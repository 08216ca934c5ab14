//! The services of a stack: started, together or one more, in order or to die.

use std::process::Stdio;

use crate::Stack;
use crate::environment::{self, Environment};
use crate::processes::{Process, Program};
use crate::servers::free_port;
use crate::wait::{PATIENCE, wait_until};

impl Stack {
    /// A variable of all services that are started from here on.
    pub fn set_env(&mut self, name: &'static str, value: &str) {
        self.common.insert(name, value.to_owned());
    }

    /// A variable of the workers that are started from here on.
    pub fn set_worker_env(&mut self, name: &'static str, value: &str) {
        self.worker.insert(name, value.to_owned());
    }

    /// Starts an api, and returns when it is ready.
    pub async fn start_api(&mut self) {
        let mut api = self.start_process(Program::Api, &Environment::new()).await;
        api.wait_for_word("ready").await;
        self.wait_until_ready().await;
        self.apis.push(api);
    }

    /// Waits until the api says that it accepts webhooks.
    pub async fn wait_until_ready(&self) {
        let probe = self.client.get("/ready");
        wait_until("GET /ready to answer 200", PATIENCE, async || {
            let probe = probe.try_clone().expect("a GET can be repeated");
            probe.send().await.is_ok_and(|response| response.status().is_success())
        })
        .await;
    }

    /// Starts one more relay, and returns when it publishes.
    pub async fn start_relay(&mut self) {
        let mut relay = self.start_process(Program::Relay, &self.relay.clone()).await;
        relay.wait_for_word("ready").await;
        self.relays.push(relay);
    }

    /// Starts one more worker, and returns when it consumes.
    pub async fn start_worker(&mut self) {
        let mut worker = self.start_process(Program::Worker, &self.worker.clone()).await;
        worker.wait_for_word("ready").await;
        self.workers.push(worker);
    }

    /// Starts one more service, and does not wait until it is ready: nothing it needs may be there.
    pub async fn spawn(&mut self, program: Program) {
        let process = self.start_process(program, &self.own(program)).await;
        self.processes(program).push(process);
    }

    /// The same with its log into `log`, where the test reads it or nobody.
    pub async fn spawn_into(&mut self, program: Program, log: impl Into<Stdio>) {
        let process = self.start_process_into(program, &self.own(program), log.into()).await;
        self.processes(program).push(process);
    }

    /// The services of one program.
    pub fn processes(&mut self, program: Program) -> &mut Vec<Process> {
        match program {
            Program::Relay => &mut self.relays,
            Program::Worker => &mut self.workers,
            _ => &mut self.apis,
        }
    }

    fn own(&self, program: Program) -> Environment {
        match program {
            Program::Relay => self.relay.clone(),
            Program::Worker => self.worker.clone(),
            _ => Environment::new(),
        }
    }

    /// Starts a process that ends by SIGKILL when it passes this kill point for the n-th time, which may be
    /// before it is ready.
    pub async fn start_doomed(&mut self, program: Program, kill_point: &str, passage: u32) -> Process {
        self.start_with(program, "KILL_AT", format!("{kill_point}:{passage}")).await
    }

    /// Starts a process that stops there by SIGSTOP instead.
    pub async fn start_that_stops(&mut self, program: Program, kill_point: &str, passage: u32) -> Process {
        self.start_with(program, "STOP_AT", format!("{kill_point}:{passage}")).await
    }

    async fn start_with(&mut self, program: Program, variable: &'static str, value: String) -> Process {
        let mut own = self.own(program);
        own.insert(variable, value);
        self.start_process(program, &own).await
    }

    async fn start_process(&mut self, program: Program, own: &Environment) -> Process {
        self.start_process_into(program, own, Stdio::piped()).await
    }

    async fn start_process_into(&mut self, program: Program, own: &Environment, log: Stdio) -> Process {
        self.processes_started += 1;
        let name = format!("{}-{program:?}-{}", self.name, self.processes_started).to_lowercase();
        let mut environment = self.common.clone();
        environment.insert("METRICS_ADDR", format!("127.0.0.1:{}", free_port()));
        environment.extend(own.clone());
        let environment = (self.rewrite)(environment::with_own_users(environment, program));
        let environment: Vec<(&str, &str)> = environment.iter().map(|(name, value)| (*name, value.as_str())).collect();
        Process::start_into(name, program, &environment, log).await
    }
}
