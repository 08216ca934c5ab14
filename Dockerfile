# One image with all of Outhook's programs; the command says which one runs.

# The manifests and the shape of the crates, without what is in them: a change of the code leaves this
# as it was, and with it the compiled dependencies below.
FROM rust:1.95-bookworm AS manifests
WORKDIR /src
COPY . .
RUN rm -rf .sqlx scripts \
 && find . -type f ! -path './.cargo/*' ! -name 'Cargo.*' ! -name lib.rs ! -name main.rs ! -name build.rs -delete \
 && find . -type d -empty -delete \
 && for file in $(find . -name '*.rs'); do echo 'fn main() {}' >"$file"; done

FROM rust:1.95-bookworm AS build
WORKDIR /src
ENV PACKAGES="-p outhook-api -p outhook-relay -p outhook-worker -p outhook-migrate -p outhook-check -p receiver"
COPY --from=manifests /src .
RUN cargo build --release --locked $PACKAGES
COPY . .
# Cargo goes by the time of change, and these may be older than the empty files just compiled.
RUN find . -path ./target -prune -o -type f -exec touch {} + \
 && cargo build --release --locked $PACKAGES \
 && cd target/release \
 && install -D -t /programs outhook-api outhook-relay outhook-worker outhook-migrate outhook-check outhook-receiver

FROM debian:bookworm-slim
RUN apt-get update \
 && apt-get install -y --no-install-recommends ca-certificates \
 && rm -rf /var/lib/apt/lists/* \
 && useradd --system --no-create-home --uid 10001 outhook
COPY --from=build /programs/ /src/scripts/healthy /usr/local/bin/
USER outhook
EXPOSE 8080
CMD ["outhook-api"]
