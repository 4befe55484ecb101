package main

import (
	"context"
	"io"

	"github.com/spf13/cobra"

	"github.com/tidings-go/tidings/driver"
	"github.com/tidings-go/tidings/setup"
)

func provisionVerb(s *session) *cobra.Command {
	var flags topologyFlags
	var dry, grants bool
	var principal string
	command := &cobra.Command{
		Use: "provision", Short: "Makes what the application needs on broker and database", Args: cobra.NoArgs,
		Long: `Makes what is missing: topics with their partitions, replicas and min ISR, queues
with a redrive to a dead letter queue, topics of SNS and their subscriptions, the
record of shards of Redis Streams, tables. What is there is not changed; tidings
doctor judges it.

With --dry-run it makes nothing and says what it would make: exit status 3 when
something is missing. With --print it makes nothing and writes what an administrator
must grant the application: Kafka ACLs, an IAM policy, a Redis ACL, SQL grants.

` + topologyHelp,
		Example: "  shop -describe | tidings provision --topology - --dry-run\n  tidings provision --topology topology.json\n  tidings provision --topology topology.json --print --principal shop",
	}
	flags.register(command)
	command.Flags().BoolVar(&dry, "dry-run", false, "make nothing, say what would be made")
	command.Flags().BoolVar(&grants, "print", false, "write what must be granted, and make nothing")
	command.Flags().StringVar(&principal, "principal", "", "with --print: the user of broker or database that it is granted to")
	command.RunE = s.do(func(ctx context.Context, _ []string) error {
		if dry && grants {
			return usage("--dry-run and --print: one of them")
		}
		topology, err := flags.read(s)
		if err != nil {
			return err
		}
		config := s.config()
		database := config.DriverName() == "postgres" || config.DriverName() == "sqlite"
		if isEmpty(&topology) && !database && config.DriverName() != "in-memory" {
			return usage("it is not said what the application declares: pass --topology, or --publish and --subscription")
		}
		s.makesFiles = true
		parts, err := s.parts(ctx, !grants)
		if err != nil {
			return err
		}
		if grants {
			return s.printGrants(parts, topology, principal)
		}
		return s.provision(ctx, parts, topology, dry)
	})
	return command
}

func (s *session) printGrants(parts []part, topology driver.Topology, principal string) error {
	all := []driver.Grant{}
	for _, p := range parts {
		if provisioner, ok := p.value.(driver.Provisioner); ok {
			all = append(all, provisioner.Grants(topology, principal)...)
		}
	}
	return s.print(map[string]any{"grants": all}, func(io.Writer) {
		for _, g := range all {
			// Past the tabwriter: the texts are for other programs.
			printf(s.streams.out, "# %s\n%s\n", g.What, g.Text)
		}
		if len(all) == 0 {
			printf(s.streams.out, "# Nothing has to be granted.\n")
		}
	})
}

func (s *session) provision(ctx context.Context, parts []part, topology driver.Topology, dry bool) error {
	resources := []driver.Resource{}
	missing := false
	var failed error
	for _, p := range parts {
		provisioner, ok := p.value.(driver.Provisioner)
		if !ok {
			continue
		}
		found, err := provisioner.Provision(ctx, topology, dry)
		for n := range found {
			if err == nil && !dry && found[n].Kind == "tables" && found[n].State == driver.ResourceMissing {
				if err = s.migrate(ctx, p); err == nil {
					found[n].State = driver.ResourceMade
				}
			}
			missing = missing || found[n].State == driver.ResourceMissing
		}
		resources = append(resources, found...)
		if failed = err; err != nil {
			break
		}
	}
	err := s.print(map[string]any{"resources": resources}, func(w io.Writer) {
		for _, r := range resources {
			printf(w, "%s\t%s\t%s\t%s\n", r.State, r.Kind, r.Name, r.Detail)
		}
		if len(resources) == 0 {
			printf(w, "Nothing has to be made.\n")
		}
	})
	switch {
	case failed != nil:
		return failed
	case err == nil && missing && dry:
		return errFindings
	}
	return err
}

// migrate makes the tables of a part.
func (s *session) migrate(ctx context.Context, p part) error {
	database, ok := p.value.(setup.Database)
	if !ok { // a driver over the database
		var err error
		if database, err = s.database(nil); err != nil {
			return err
		}
	}
	return database.Migrate(ctx)
}
