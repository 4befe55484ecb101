package driver

import "context"

// Resource is something that a topology needs on a broker or in a database.
type Resource struct {
	// Kind is "topic", "queue", "subscription", "stream", "group" or "tables".
	Kind string `json:"kind"`
	Name string `json:"name"`
	// State is ResourceThere, ResourceMissing or ResourceMade.
	State ResourceState `json:"state"`
	// Detail says how it is, or would be, made.
	Detail string `json:"detail,omitempty"`
}

// ResourceState says whether a [Resource] is there.
type ResourceState string

// The states of a resource.
const (
	ResourceThere   ResourceState = "there"
	ResourceMissing ResourceState = "missing" // and would be made
	ResourceMade    ResourceState = "made"
)

// Grant is what an administrator must allow the application, in the language of
// the broker.
type Grant struct {
	// What it is: "Kafka ACLs", "IAM policy", "Redis ACL", "PostgreSQL grants".
	What string `json:"what"`
	Text string `json:"text"`
}

// Provisioner is implemented by drivers and stores that need something made
// before events flow. It may be called at once with everything else.
type Provisioner interface {
	// Provision looks for what a topology needs and makes what is missing, whatever
	// the options of the driver say about making things at run time; with dry it
	// makes nothing. What is there is not changed. Resources are in the order in
	// which they are made; the error is for the one behind the last.
	Provision(ctx context.Context, topology Topology, dry bool) ([]Resource, error)

	// Grants returns what the application needs at run time, and no more. The
	// principal is the broker's or database's user, or "" for one to be filled in.
	Grants(topology Topology, principal string) []Grant
}
