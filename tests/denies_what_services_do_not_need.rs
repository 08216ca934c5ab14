//! Each service may do what it does and nothing more, in Postgres and in RabbitMQ: whoever breaks into one has
//! not got the others. What each may do stands in `rights`; all else is tried, and must be refused.
//!
//! That they need no less is what all other tests show: their services run as the users of these roles.

mod in_a_deployment;
mod in_postgres;
mod in_rabbitmq;
mod needs;
mod rights;
