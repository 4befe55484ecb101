// Package kafka is the driver for Apache Kafka 3 and later.
package kafka
