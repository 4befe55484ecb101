package main

import (
	"github.com/spf13/cobra"

	"github.com/tidings-go/tidings/outbox"
)

func outboxVerb(s *session) *cobra.Command {
	return group("outbox", "The outbox in the application's database",
		"What the outbox holds, what can be done about events that the broker refuses, and the\ntables it needs.",
		outboxStatusVerb(s), outboxSchemaVerb(s), outboxHeldVerb(s), outboxRetryVerb(s), outboxDiscardVerb(s), outboxDiscardedVerb(s))
}

// queue opens the outbox of the application's database.
func (s *session) queue() (outbox.Queue, error) {
	database, err := s.database(nil)
	if err != nil {
		return nil, err
	}
	return queueOf(database)
}

func queueOf(database any) (outbox.Queue, error) {
	queue, ok := database.(outbox.Queue)
	if !ok {
		return nil, usage("a %T has no outbox", database)
	}
	return queue, nil
}
