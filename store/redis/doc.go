// Package redis keeps claims and dead letters in Redis or Valkey.
//
// # What is promised
//
// Claims make a handler run once for an event between all instances that share the
// store: a claim is one atomic script, its lease ends by Redis's own clock, another
// instance takes over what a crashed one left, and a key is done only when Finish
// said so. Dead letters are stored idempotently and given to one taker at a time.
//
// # What is not
//
// All of it is as durable as Redis: without appendonly yes and appendfsync always a
// restart forgets, a failover may forget, and an eviction policy may delete. A
// claim that is forgotten lets an event be handled again.
//
// Keys that one script touches share a hash slot, so the stores work on Redis
// Cluster.
package redis
