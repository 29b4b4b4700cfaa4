// stargz-snapshotter as a program: `containerd-stargz-grpc SOCKET ROOT`, with its own default settings.
//
// The project's command of this name is in a module that no module proxy has; this serves the same library.
package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"

	api "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/contrib/snapshotservice"
	"github.com/containerd/stargz-snapshotter/service"
	"google.golang.org/grpc"
)

func main() {
	if len(os.Args) != 3 {
		fail(fmt.Errorf("usage: %s SOCKET ROOT", filepath.Base(os.Args[0])))
	}
	snapshotter, err := service.NewStargzSnapshotterService(context.Background(), os.Args[2], &service.Config{})
	if err != nil {
		fail(err)
	}
	listener, err := net.Listen("unix", os.Args[1])
	if err != nil {
		fail(err)
	}
	server := grpc.NewServer()
	api.RegisterSnapshotsServer(server, snapshotservice.FromSnapshotter(snapshotter))
	fail(server.Serve(listener))
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}
