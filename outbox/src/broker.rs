//! What travels through RabbitMQ, and the exchange and queues that it travels through.

pub mod task;
pub mod topology;
