//! What Outhook promises, one file a promise. Each test runs the real programs against real servers.

mod accepts_each_key_once;
mod answers_without_postgres;
mod delivers_accepted_webhook;
mod documents_every_variable;
mod drains_on_sigterm;
mod enqueues_from_sql;
mod finds_violations;
mod refuses_bad_requests;
mod refuses_duplicate_messages;
mod refuses_to_start;
mod retries_failed_delivery;
mod shares_work;
mod survives_acknowledgement_timeout;
mod survives_api_kill;
mod survives_blocked_broker;
mod survives_broker_restart;
mod survives_confirm_loss;
mod survives_full_disk;
mod survives_lack_of_file_descriptors;
mod survives_lost_connections;
mod survives_postgres_crash;
mod survives_refused_messages;
mod survives_relay_kill;
mod survives_silent_broker;
mod survives_worker_kill;
