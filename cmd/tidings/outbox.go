package main

import (
	"github.com/spf13/cobra"

	"github.com/tidings-go/tidings/outbox"
)

func outboxVerb(s *session) *cobra.Command {
	return group("outbox", "The outbox in the application's database",
		"What the outbox holds, and the tables it needs.",
		outboxStatusVerb(s), outboxSchemaVerb(s))
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
